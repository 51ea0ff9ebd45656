// BullMQ as a peer of the queue: N empty jobs of 100 bytes, added in bulk, and done by one worker.
//     node bullmq.mjs REDIS_PORT JOBS CONCURRENCY      (npm install bullmq beside it)
// Prints one line of JSON: seconds to add all, and from the first job's adding to the last one's end.
import { Queue, QueueEvents, Worker } from "bullmq";

const [port, jobs, concurrency] = process.argv.slice(2).map(Number);
const connection = { host: "127.0.0.1", port, maxRetriesPerRequest: null };
const queue = new Queue("peer", { connection });
const data = { image: "x".repeat(100) };
const BULK = 500;

await queue.waitUntilReady();
let done = 0;
let finish;
const all = new Promise((resolve) => { finish = resolve; });
const worker = new Worker("peer", async () => "r", {
  connection, concurrency, removeOnComplete: { count: jobs },
});
worker.on("completed", () => { if (++done === jobs) finish(); });
worker.on("failed", (_, e) => { console.error(e); process.exit(1); });
await worker.waitUntilReady();

const begin = process.hrtime.bigint();
let added = 0;
while (added < jobs) {
  const n = Math.min(BULK, jobs - added);
  await queue.addBulk(Array.from({ length: n }, () => ({ name: "j", data })));
  added += n;
}
const addedAt = process.hrtime.bigint();
await all;
const end = process.hrtime.bigint();
console.log(JSON.stringify({ add_s: Number(addedAt - begin) / 1e9, all_s: Number(end - begin) / 1e9 }));
await worker.close();
await queue.close();
