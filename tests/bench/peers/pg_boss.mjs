// pg-boss: a job a command, in a queue whose policy is FIFO per key. `node pg_boss.mjs load|apply JOB`
import { PgBoss } from "pg-boss";
import { begin, chunks, count, effect, isOver, job, mode, pool, server, sleep } from "./work.mjs";

const QUEUE = "account";
// How many keys a worker fetches at a time, each with its oldest job.
const KEYS = 100;

// Its maintenance would run beside the measurement: left out.
const boss = new PgBoss({ ...server, max: job.workers + 2, supervise: false, schedule: false });
boss.on("error", console.error);
await boss.start();

async function load() {
  await boss.createQueue(QUEUE, { policy: "key_strict_fifo" });
  for (const chunk of chunks()) {
    await boss.insert(QUEUE, chunk.map((data) => ({ data, singletonKey: data.key })));
  }
}

// Fetched, handled and completed in one transaction of the worker's own connection.
async function turn(client) {
  const db = { executeSql: (text, values) => client.query(text, values) };
  await client.query("BEGIN");
  const jobs = await boss.fetch(QUEUE, { batchSize: KEYS, db });
  for (const { data } of jobs) await client.query(effect(data));
  if (jobs.length) await boss.complete(QUEUE, jobs.map(({ id }) => id), null, { db });
  await client.query("COMMIT");
  return jobs.length;
}

async function work(clients) {
  const client = await clients.connect();
  let pause = 0;
  while (!isOver()) {
    const found = await turn(client);
    count(found);
    pause = found ? 0 : Math.min(Math.max(pause * 2, 1), 100);
    if (pause) await sleep(pause);
  }
  client.release();
}

async function apply() {
  const clients = pool(job.workers);
  await begin();
  await Promise.all(Array.from({ length: job.workers }, () => work(clients)));
  await clients.end();
}

await (mode === "load" ? load() : apply());
await boss.stop({ graceful: false });
process.exit(0);
