/**
 * The service's HTTP interface, typed by its openapi.json.
 *
 * A job is known by its address, `https://host/jobs/ID`, with `?token=` for those who come by a link: everything that
 * reads a job takes that address, and works the same for its owner, for a friend and on another site.
 */

import type { components } from "./schema";
import { sleep } from "./time";

export type JobDocument = components["schemas"]["JobDocument"];
export type FileDocument = components["schemas"]["FileDocument"];
export type ModelDocument = components["schemas"]["ModelDocument"];
export type LinkDocument = components["schemas"]["LinkDocument"];

/** An answer that is no success: one sentence on what is wrong and, where there is one, what to do (RFC 9457). */
export class Problem extends Error {
  override readonly name = "Problem";

  constructor(
    readonly status: number,
    readonly kind: string,
    detail: string,
    readonly suggestion = "",
    readonly retryAfter = 0,
  ) {
    super(detail);
  }

  static async of(response: Response): Promise<Problem> {
    const body = await response.json().catch(() => ({}));
    return Problem.from(response.status, body, Number(response.headers.get("Retry-After")));
  }

  static from(status: number, body: Partial<components["schemas"]["ProblemDocument"]>, retryAfter = 0): Problem {
    const detail = body.detail ?? `The service answered with status ${status}.`;
    return new Problem(status, body.type ?? "", detail, body.suggestion, retryAfter || 0);
  }
}

/** The service cannot be reached at all. */
export function unreachable(): Problem {
  return new Problem(0, "unreachable", "The service cannot be reached.", "Check that it runs, and the connection.");
}

export function ended(job: JobDocument): boolean {
  return job.status === "succeeded" || job.status === "failed" || job.status === "canceled";
}

/** The job's page, or one of its files, at the address that the job's document names. */
export function absolute(url: string, base: string): string {
  return new URL(url, base).href;
}

/** Who calls: where the service is, and the API key, where one is needed. */
export class Service {
  constructor(
    readonly base: string,
    private readonly key: string = "",
  ) {}

  async models(): Promise<ModelDocument[]> {
    const answer: components["schemas"]["ModelsDocument"] = await this.json("/models");
    return answer.models;
  }

  async job(id: string): Promise<JobDocument> {
    return this.json(`/jobs/${id}`);
  }

  async cancel(id: string): Promise<JobDocument> {
    return this.json(`/jobs/${id}/cancel`, { method: "POST" });
  }

  async remove(id: string): Promise<void> {
    await this.send(`/jobs/${id}`, { method: "DELETE" });
  }

  /** A link that reads the job without a key, for so many seconds. */
  async share(id: string, seconds: number): Promise<LinkDocument> {
    return this.json(`/jobs/${id}/links?seconds=${seconds}`, { method: "POST" });
  }

  /** Why no job can be done now; nothing: it can. */
  async reasons(): Promise<string[]> {
    const response = await fetch(this.url("/readyz"), { cache: "no-store" }).catch(() => null);
    if (response?.ok) return [];
    const answer: Partial<components["schemas"]["ReadinessDocument"]> = (await response?.json().catch(() => null)) ?? {};
    return answer.reasons ?? [unreachable().message];
  }

  /**
   * Send photos and fields; `onProgress` is told the share of the bytes that have gone. Raises Problem.
   * Sent again with the same `idempotencyKey` after a broken connection, they do not become a second job.
   */
  reconstruct(
    form: FormData,
    idempotencyKey: string,
    onProgress: (share: number) => void,
    signal: AbortSignal,
  ): Promise<JobDocument> {
    // fetch does not tell how much of a body has gone.
    const request = new XMLHttpRequest();
    return new Promise((resolve, reject) => {
      const abort = () => request.abort();
      signal.throwIfAborted();
      signal.addEventListener("abort", abort);
      request.addEventListener("loadend", () => signal.removeEventListener("abort", abort));
      request.upload.addEventListener("progress", (event) => onProgress(event.loaded / event.total));
      request.addEventListener("abort", () => reject(signal.reason));
      request.addEventListener("error", () => reject(unreachable()));
      request.addEventListener("load", () => {
        if (request.status < 300) {
          resolve(request.response as JobDocument);
        } else {
          const wait = Number(request.getResponseHeader("Retry-After"));
          reject(Problem.from(request.status, request.response ?? {}, wait));
        }
      });
      request.open("POST", this.url("/reconstruct"));
      request.responseType = "json";
      for (const [name, value] of Object.entries(this.headers())) request.setRequestHeader(name, value);
      request.setRequestHeader("Idempotency-Key", idempotencyKey);
      request.send(form);
    });
  }

  /** The job's document at once and at every change, until it has ended. Raises Problem. */
  watch(id: string, signal: AbortSignal): AsyncGenerator<JobDocument> {
    return watch(this.url(`/jobs/${id}`), signal, this.headers());
  }

  private headers(): Record<string, string> {
    return this.key ? { Authorization: `Bearer ${this.key}` } : {};
  }

  private url(path: string): string {
    return absolute(path, this.base);
  }

  /** The answer of any address of the service. Raises Problem. */
  async send(path: string, options: RequestInit = {}): Promise<Response> {
    return send(this.url(path), { ...options, headers: { ...this.headers(), ...options.headers } });
  }

  private async json<T>(path: string, options?: RequestInit): Promise<T> {
    return (await this.send(path, options)).json();
  }
}

/** The document of the job at an address. Raises Problem. */
export async function readJob(address: string, signal?: AbortSignal): Promise<JobDocument> {
  return (await send(address, { signal })).json();
}

/**
 * The document of the job at an address, at once and at every change, until it has ended.
 *
 * By Server-Sent Events; where none come through (some proxies hold them back), by asking again and again. Lost
 * connections are taken up again; a problem that the service states is raised.
 */
export async function* watch(
  address: string,
  signal: AbortSignal,
  headers: Record<string, string> = {},
): AsyncGenerator<JobDocument> {
  let last = "";
  let eventsCome = true;
  while (true) {
    if (eventsCome) {
      eventsCome = false;
      try {
        for await (const data of events(eventsOf(address), signal, headers)) {
          eventsCome = true;
          if (data === last) continue;
          last = data;
          const job: JobDocument = JSON.parse(data);
          yield job;
          if (ended(job)) return;
        }
      } catch (error) {
        signal.throwIfAborted();
        if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      }
    }
    // The stream has broken, or says nothing: the document itself tells more.
    const { job, wait } = await poll(address, signal, headers);
    const data = JSON.stringify(job);
    if (data !== last) yield job;
    last = data;
    if (ended(job)) return;
    await sleep(wait, signal);
  }
}

/** First event at the latest after so long, and no silence longer than this (the service pings every 15 s). */
const SILENCE = { first: 4_000, later: 40_000 };

async function* events(
  url: string,
  signal: AbortSignal,
  headers: Record<string, string>,
): AsyncGenerator<string> {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE.first);
  // EventSource cannot send a key.
  const response = await send(url, {
    headers: { ...headers, Accept: "text/event-stream" },
    signal: AbortSignal.any([signal, silence.signal]),
    cache: "no-store",
  });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE.later);
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop()!;
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    clearTimeout(timer);
    void reader.cancel().catch(() => undefined);
  }
}

async function poll(
  address: string,
  signal: AbortSignal,
  headers: Record<string, string>,
): Promise<{ job: JobDocument; wait: number }> {
  for (let pause = 1; ; pause = Math.min(2 * pause, 30)) {
    try {
      const response = await send(address, { headers, signal, cache: "no-store" });
      return { job: await response.json(), wait: Number(response.headers.get("Retry-After")) || 2 };
    } catch (error) {
      signal.throwIfAborted();
      const problem = error instanceof Problem ? error : unreachable();
      if (problem.status >= 400 && problem.status < 500 && problem.status !== 429) throw problem;
      await sleep(problem.retryAfter || pause, signal);
    }
  }
}

function eventsOf(address: string): string {
  const url = new URL(address);
  url.pathname += "/events";
  return url.href;
}

async function send(url: string, options: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, options);
  } catch {
    options.signal?.throwIfAborted();
    throw unreachable();
  }
  if (!response.ok) throw await Problem.of(response);
  return response;
}

/** A file's bytes; `onProgress` is told how many have come. Raises Problem. */
export async function download(
  url: string,
  onProgress: (bytes: number) => void,
  signal?: AbortSignal,
): Promise<ArrayBuffer> {
  const response = await send(url, { signal });
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  let bytes = 0;
  const reader = response.body!.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    bytes += part.value.length;
    onProgress(bytes);
  }
  return new Blob(chunks).arrayBuffer();
}
