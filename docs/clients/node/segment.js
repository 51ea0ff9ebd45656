// node segment.js IMAGE PROMPT OUT.png
// One phrase in one image, against PSEG_SERVER; PSEG_CA (PEM) and PSEG_KEY for TLS and a bearer key.
import {randomUUID} from 'node:crypto';
import {readFileSync, writeFileSync} from 'node:fs';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const protos = new URL('../../../proto/', import.meta.url).pathname;
const {pseg} = grpc.loadPackageDefinition(protoLoader.loadSync('pseg/v1/pseg.proto',
  {includeDirs: [protos], keepCase: false, longs: Number, enums: String, defaults: true, oneofs: true}));
const errors = protobuf.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto'].map(f => protos + f));

// The details of a failed call: google.rpc.Status in the trailer, with messages of google.rpc within.
function details(error) {
  const packed = error.metadata?.get('grpc-status-details-bin')[0];
  const found = {};
  if (!packed) return found;
  for (const any of errors.lookupType('google.rpc.Status').decode(packed).details) {
    const name = any.type_url.split('/').pop();
    if (errors.lookup(name)) found[name] = errors.lookupType(name).decode(any.value);
  }
  return found;
}

// A call as a promise, tried again while the server is away or says when to come back.
async function call(client, method, request, {tries = 5, timeoutMs = 30000} = {}) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await new Promise((resolve, reject) => {
        client[method](request, {deadline: Date.now() + timeoutMs},
          (error, reply) => error ? reject(error) : resolve(reply));
      });
    } catch (error) {
      const retry = details(error)['google.rpc.RetryInfo']?.retryDelay;
      const wait = retry ? Number(retry.seconds) * 1000 + retry.nanos / 1e6
        : error.code === grpc.status.UNAVAILABLE ? 100 * 2 ** attempt : null;
      if (wait === null || attempt + 1 >= tries) throw error;
      await new Promise(resolve => setTimeout(resolve, wait));
    }
  }
}

function connect() {
  const {PSEG_SERVER = '127.0.0.1:7433', PSEG_CA, PSEG_KEY} = process.env;
  let credentials = grpc.credentials.createInsecure();
  if (PSEG_CA) credentials = grpc.credentials.createSsl(readFileSync(PSEG_CA));
  if (PSEG_CA && PSEG_KEY)
    credentials = grpc.credentials.combineChannelCredentials(credentials,
      grpc.credentials.createFromMetadataGenerator((_, done) => {
        const metadata = new grpc.Metadata();
        metadata.set('authorization', `Bearer ${PSEG_KEY}`);
        done(null, metadata);
      }));
  return new pseg.v1.SegmentationService(PSEG_SERVER, credentials);
}

// The masks of a job, each joined from its chunks.
function fetchMasks(client, name) {
  return new Promise((resolve, reject) => {
    const masks = new Map();
    client.fetchMasks({name, format: {encoding: 'MASK_ENCODING_PNG'}}, {deadline: Date.now() + 60000})
      .on('data', ({mask}) => masks.set(mask.promptIndex, [...(masks.get(mask.promptIndex) ?? []), mask.data]))
      .on('error', reject)
      .on('end', () => resolve([...masks.values()].map(parts => Buffer.concat(parts))));
  });
}

const [image, prompt, out] = process.argv.slice(2);
if (!out) {
  console.error('usage: node segment.js IMAGE PROMPT OUT.png');
  process.exit(2);
}
const client = connect();
try {
  // With a request id of our own a repeated call never makes a second job.
  let job = await call(client, 'createJob',
    {requestId: randomUUID(), job: {content: readFileSync(image), prompts: [{text: prompt}]}});
  while (['STATE_QUEUED', 'STATE_RUNNING'].includes(job.state)) job = await call(client, 'waitJob', {name: job.name});
  if (job.state !== 'STATE_SUCCEEDED') throw new Error(`${job.name}: ${job.state}: ${job.error?.message}`);
  const [mask] = await fetchMasks(client, job.name);
  writeFileSync(out, mask);
  console.log(`${job.name} iou=${job.results[0].predictedIou.toFixed(4)} area=${job.results[0].areaPx}`);
} catch (error) {
  const found = details(error);
  const fields = (found['google.rpc.BadRequest']?.fieldViolations ?? []).map(v => v.field).join(' ');
  console.error(`error: ${found['google.rpc.ErrorInfo']?.reason ?? 'UNKNOWN'} ${fields} ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
