// What both peers for Node share: the job on the command line, the load, and when to end.
import pg from "pg";

const CHUNK = 1000;

export const [mode, text] = process.argv.slice(2);
export const job = JSON.parse(text);
export const server = { host: job.host, port: job.port, user: job.user, database: job.database };

// The commands in the transactions in which they are sent, as work.py has them.
export function* chunks() {
  for (let number = 1; number <= job.depth; number += 1) {
    for (let first = 0; first < job.keys; first += CHUNK) {
      const size = Math.min(CHUNK, job.keys - first);
      yield Array.from({ length: size }, (_, n) => ({ key: `key-${first + n}`, number }));
    }
  }
}

export const pool = (max) => new pg.Pool({ ...server, max });

export const effect = ({ key, number }) => ({ name: "effect", text: job.effect, values: [key, number] });

export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// From here on the time is measured.
export async function begin() {
  const client = new pg.Client(server);
  await client.connect();
  await client.query(job.begin);
  await client.end();
}

const endAt = Date.now() + job.seconds * 1000;
let left = job.keys * job.depth;
export const count = (commands) => { left -= commands; };
export const isOver = () => left <= 0 || Date.now() > endAt;
