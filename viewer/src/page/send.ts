/** From the tray to a job: all at once, or, where it is much, in parts that survive a broken connection. */

import { type JobDocument, Problem, type Service } from "../api";
import { sleep } from "../time";
import type { Access } from "./key";
import { fileOf, forget, upload } from "./resumable";
import type { Item } from "./tray";

/** From so many bytes on a connection that breaks is worth a second way. */
const MUCH = 64e6;
const MOST_TRIES = 8;
const LONGEST_WAIT = 60;

/** What goes on while photos are sent. */
export type Sending =
  | { phase: "upload"; share: number }
  /** Everything has arrived; the service looks at it. */
  | { phase: "check" }
  /** Not taken now: tried again after so many seconds, or when `now` is called. */
  | { phase: "wait"; seconds: number; problem: Problem; now: () => void };

/** Raises Problem, and the signal's reason. */
export async function send(
  access: Access,
  items: readonly Item[],
  fields: readonly [string, string][],
  report: (state: Sending) => void,
  signal: AbortSignal,
): Promise<JobDocument> {
  const key = randomKey();
  for (let tries = 1; ; tries++) {
    try {
      const job = await access.call((service) => once(service, items, fields, key, report, signal));
      // A job uses its uploads up.
      for (const item of items) forget(item.file);
      return job;
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof Problem) || tries === MOST_TRIES) throw error;
      if (error.kind === "unknown-upload") for (const item of items) forget(item.file);
      else if (!error.retryAfter && error.status !== 0) throw named(error, items);
      await countdown(Math.min(Math.max(error.retryAfter, 2 ** tries), LONGEST_WAIT), error, report, signal);
    }
  }
}

async function once(
  service: Service,
  items: readonly Item[],
  fields: readonly [string, string][],
  key: string,
  report: (state: Sending) => void,
  signal: AbortSignal,
): Promise<JobDocument> {
  const form = new FormData();
  const much = items.reduce((sum, item) => sum + item.file.size, 0) > MUCH;
  const sent = (share: number) => report(share < 1 ? { phase: "upload", share } : { phase: "check" });
  sent(0);
  if (much) {
    form.append("uploads", (await uploadAll(service, items, sent, signal)).join(","));
  } else {
    // Photos first: a problem that counts the form's parts counts photos.
    const field = { photo: "images", archive: "archive", video: "video" } as const;
    for (const item of items) form.append(field[item.kind], item.file, item.name);
  }
  for (const [name, value] of fields) form.append(name, value);
  return service.reconstruct(form, key, much ? () => sent(1) : sent, signal);
}

async function uploadAll(
  service: Service,
  items: readonly Item[],
  sent: (share: number) => void,
  signal: AbortSignal,
): Promise<string[]> {
  const all = items.reduce((sum, item) => sum + item.file.size, 0);
  const ids: string[] = [];
  let before = 0;
  for (const { file, name } of items) {
    ids.push(await upload(service, file, name, (bytes) => sent(Math.min(0.999, (before + bytes) / all)), signal));
    before += file.size;
  }
  return ids;
}

async function countdown(
  seconds: number,
  problem: Problem,
  report: (state: Sending) => void,
  signal: AbortSignal,
): Promise<void> {
  const sooner = new AbortController();
  for (let left = Math.ceil(seconds); left > 0 && !sooner.signal.aborted; left--) {
    report({ phase: "wait", seconds: left, problem, now: () => sooner.abort() });
    await sleep(1, AbortSignal.any([signal, sooner.signal])).catch(() => signal.throwIfAborted());
  }
}

/** The same problem with a photo's name where it has an upload's id. */
function named(problem: Problem, items: readonly Item[]): Problem {
  const id = /\bupload ([A-Za-z0-9_-]{22})\b/.exec(problem.message)?.[1];
  const file = id && fileOf(id, items.map((item) => item.file));
  const item = items.find((one) => one.file === file);
  if (!item) return problem;
  const detail = problem.message.replace(/^The photo of upload \S+/, item.name);
  return new Problem(problem.status, problem.kind, detail, problem.suggestion);
}

/** `crypto.randomUUID` is there on https and on this machine only. */
function randomKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
