// graphile-worker: a job a command, in a named queue a key. `node graphile_worker.mjs load|apply JOB`
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { begin, chunks, count, effect, isOver, job, mode, pool, sleep } from "./work.mjs";

const logger = new Logger(() => (level, message) => {
  if (level === "error") console.error(message);
});

async function load() {
  const pgPool = pool(2);
  const utils = await makeWorkerUtils({ pgPool, logger });
  await utils.migrate();
  for (const chunk of chunks()) {
    await utils.addJobs(
      chunk.map((payload) => ({ identifier: "apply", payload, queueName: payload.key })),
    );
  }
  await utils.release();
  await pgPool.end();
}

async function apply() {
  // A connection for each handler, for each fetch or completion, and for the listener.
  const pgPool = pool(2 * job.workers + 2);
  await begin();
  const runner = await run({
    pgPool,
    logger,
    concurrency: job.workers,
    pollInterval: 1,
    noHandleSignals: true,
    parsedCronItems: [],
    // Without these it was several times slower: a fetch goes over all queues, whatever it returns.
    preset: { worker: { localQueue: { size: 1000 }, completeJobBatchDelay: 0 } },
    taskList: {
      apply: async (payload, helpers) => {
        await helpers.withPgClient((client) => client.query(effect(payload)));
        count(1);
      },
    },
  });
  while (!isOver()) await sleep(20);
  await runner.stop();
  await pgPool.end();
}

await (mode === "load" ? load() : apply());
process.exit(0);
