/** Every file of a scene, what it is for and how large it is. */

import { absolute, type JobDocument } from "../api";
import { h } from "./dom";
import { icon } from "./icons";
import { bytes, FILES } from "./words";

/** Links to a job's files. The job's document, read with a link's token, names them with the token. */
export function downloads(job: JobDocument, address: string): HTMLElement[] {
  if (!job.files.length) return [h("p", { class: "quiet" }, "There are no files.")];
  const total = job.files.reduce((sum, file) => sum + file.bytes, 0);
  const list = h("ul", { class: "files" });
  for (const file of job.files) {
    const link = h("a", { href: absolute(file.url, address), download: file.name });
    link.append(h("b", {}, file.name), h("span", { class: "size" }, bytes(file.bytes)));
    if (FILES[file.name]) link.append(h("span", { class: "quiet" }, FILES[file.name]!));
    list.append(h("li", {}, link));
  }
  if (!job.links.files) return [list];
  const all = h("a", { class: "button primary", href: absolute(job.links.files, address), download: "" });
  all.append(icon("download"), `Everything in one file (${bytes(total)})`);
  return [all, list];
}
