/** Large files in parts, so that a broken connection costs one part: tus 1.0.0 (https://tus.io), as docs/uploads.md. */

import { Problem, type Service } from "../api";
import { sleep } from "../time";

const PART = 8 << 20;
const MOST_FAILURES = 8;
const TUS = { "Tus-Resumable": "1.0.0" };

/** What has begun, so that a second try goes on with it, and what has arrived is not sent again. */
const begun = new WeakMap<File, string>();

/** Send a file, or the rest of it; `onProgress` is told the bytes that have arrived. Answers the upload's id. */
export async function upload(
  service: Service,
  file: File,
  name: string,
  onProgress: (bytes: number) => void,
  signal: AbortSignal,
): Promise<string> {
  for (let failures = 0; ; ) {
    try {
      const address = begun.get(file) ?? (await begin(service, file, name, signal));
      begun.set(file, address);
      let offset = await arrived(service, address, signal);
      while (offset < file.size) {
        onProgress(offset);
        const answer = await service.send(address, {
          method: "PATCH",
          body: file.slice(offset, offset + PART),
          headers: { ...TUS, "Upload-Offset": String(offset), "Content-Type": "application/offset+octet-stream" },
          signal,
        });
        offset = Number(answer.headers.get("Upload-Offset"));
        failures = 0;
      }
      onProgress(offset);
      return address.slice(address.lastIndexOf("/") + 1);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof Problem) || ++failures > MOST_FAILURES) throw error;
      if (error.status === 404) forget(file);
      else if (!mayPass(error)) throw error;
      await sleep(error.retryAfter || Math.min(2 ** failures, 30), signal);
    }
  }
}

/** Remove what the service has of a file. */
export async function withdraw(service: Service, file: File): Promise<void> {
  const address = begun.get(file);
  forget(file);
  if (address) await service.send(address, { method: "DELETE", headers: TUS }).catch(() => undefined);
}

/** The service has none of this file any more. */
export function forget(file: File): void {
  begun.delete(file);
}

/** The name of the id's file, of these. */
export function fileOf(id: string, files: readonly File[]): File | undefined {
  return files.find((file) => begun.get(file)?.endsWith(`/${id}`));
}

async function begin(service: Service, file: File, name: string, signal: AbortSignal): Promise<string> {
  const base64 = btoa(String.fromCharCode(...new TextEncoder().encode(name)));
  const headers = { ...TUS, "Upload-Length": String(file.size), "Upload-Metadata": `filename ${base64}` };
  const answer = await service.send("/uploads", { method: "POST", headers, signal });
  return answer.headers.get("Location")!;
}

async function arrived(service: Service, address: string, signal: AbortSignal): Promise<number> {
  const answer = await service.send(address, { method: "HEAD", headers: TUS, signal, cache: "no-store" });
  return Number(answer.headers.get("Upload-Offset"));
}

/** Whether asking for the offset and going on may help: no connection, a broken part, too many, somebody else. */
function mayPass(problem: Problem): boolean {
  const broken = problem.kind === "upload-interrupted" || problem.status === 408;
  return broken || [0, 409, 423, 429].includes(problem.status) || problem.status >= 500;
}
