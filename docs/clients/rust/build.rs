// Needs protoc on the PATH.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_build::configure()
        .build_server(false)
        .compile_protos(&["../../../proto/pseg/v1/pseg.proto"], &["../../../proto"])?;
    Ok(())
}
