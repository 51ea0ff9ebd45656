//! `cargo run -- IMAGE PROMPT OUT.png`: one phrase in one image, against PSEG_SERVER; PSEG_CA (PEM) and
//! PSEG_KEY for TLS and a bearer key.
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, process};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}
pub mod pseg {
    pub mod v1 {
        tonic::include_proto!("pseg.v1");
    }
}
use pseg::v1 as pb;
use pb::segmentation_service_client::SegmentationServiceClient;

type Error = Box<dyn std::error::Error>;

/// Puts the bearer key on every call, if there is one.
#[derive(Clone)]
struct Key(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

type Client = SegmentationServiceClient<InterceptedService<Channel, Key>>;

async fn connect() -> Result<Client, Error> {
    let server = env::var("PSEG_SERVER").unwrap_or_else(|_| "127.0.0.1:7433".into());
    let mut key = None;
    let endpoint = match env::var("PSEG_CA") {
        Ok(ca) => {
            if let Ok(secret) = env::var("PSEG_KEY") {
                key = Some(format!("Bearer {secret}").parse()?);
            }
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(ca)?));
            Endpoint::from_shared(format!("https://{server}"))?.tls_config(tls)?
        }
        Err(_) => Endpoint::from_shared(format!("http://{server}"))?,
    };
    Ok(SegmentationServiceClient::with_interceptor(endpoint.connect_lazy(), Key(key)))
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(30));
    request
}

/// When to try again, if that is right: UNAVAILABLE, and whatever the server gives a time for.
fn pause(status: &Status, attempt: u32) -> Option<Duration> {
    let told = status.get_details_retry_info().and_then(|r| r.retry_delay);
    told.or_else(|| (status.code() == Code::Unavailable).then(|| Duration::from_millis(100 << attempt)))
}

/// Makes the job. A request id of our own makes trying again safe: never two jobs.
async fn create(client: &mut Client, spec: pb::JobSpec) -> Result<pb::Job, Status> {
    let unique = SystemTime::now().duration_since(UNIX_EPOCH).map(|t| t.as_nanos()).unwrap_or_default();
    let request = pb::CreateJobRequest {
        request_id: format!("rust-{}-{unique}", process::id()),
        job: Some(spec),
    };
    for attempt in 0.. {
        match client.create_job(timed(request.clone())).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) => match pause(&status, attempt) {
                Some(wait) if attempt < 5 => tokio::time::sleep(wait).await,
                _ => return Err(status),
            },
        }
    }
    unreachable!()
}

async fn segment(client: &mut Client, content: Vec<u8>, prompt: &str) -> Result<(pb::Job, Vec<u8>), Error> {
    let spec = pb::JobSpec {
        image: Some(pb::job_spec::Image::Content(content)),
        prompts: vec![pb::Prompt { text: prompt.into() }],
        ..Default::default()
    };
    let mut job = create(client, spec).await?;
    while matches!(job.state(), pb::State::Queued | pb::State::Running) {
        job = client.wait_job(timed(pb::WaitJobRequest { name: job.name })).await?.into_inner();
    }
    if job.state() != pb::State::Succeeded {
        let why = job.error.clone().unwrap_or_default().message;
        return Err(format!("{}: {}: {why}", job.name, job.state().as_str_name()).into());
    }
    let request = pb::FetchMasksRequest {
        name: job.name.clone(),
        format: Some(pb::MaskFormat { encoding: pb::MaskEncoding::Png as i32, threshold: 0.0 }),
        ..Default::default()
    };
    let mut parts = client.fetch_masks(timed(request)).await?.into_inner();
    let mut mask = Vec::new();
    while let Some(part) = parts.message().await? {
        mask.extend(part.mask.unwrap_or_default().data);
    }
    Ok((job, mask))
}

/// What the details of a failed call say.
fn explain(error: &Error) -> String {
    let Some(status) = error.downcast_ref::<Status>() else {
        return format!("UNKNOWN {error}");
    };
    let reason = status.get_details_error_info().map_or("UNKNOWN".into(), |i| i.reason);
    let fields: Vec<_> = status
        .get_details_bad_request()
        .map(|b| b.field_violations.into_iter().map(|v| v.field).collect())
        .unwrap_or_default();
    format!("{reason} {} {}", fields.join(" "), status.message())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let [image, prompt, out] = args.as_slice() else {
        eprintln!("usage: cargo run -- IMAGE PROMPT OUT.png");
        process::exit(2);
    };
    let run = async {
        let mut client = connect().await?;
        let (job, mask) = segment(&mut client, fs::read(image)?, prompt).await?;
        fs::write(out, mask)?;
        Ok::<_, Error>(job)
    };
    match run.await {
        Ok(job) => println!("{} iou={:.4} area={}", job.name, job.results[0].predicted_iou, job.results[0].area_px),
        Err(error) => {
            eprintln!("error: {}", explain(&error));
            process::exit(1);
        }
    }
}
