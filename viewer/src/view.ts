/**
 * The page /view/{id}: one scene in the whole window.
 *
 * A link's token comes behind `#token=`, which browsers send nowhere, or `?token=`. Without one the reader's own rights
 * hold. Scenes of the gallery have names, where jobs have ids.
 */

import "./element";
import "./view.css";

const JOB_ID = /^[\w-]{22}$/;

const viewer = document.querySelector("scenelift-viewer")!;

function address(): string {
  const id = location.pathname.split("/").filter(Boolean).at(-1) ?? "";
  const url = new URL(JOB_ID.test(id) ? `/jobs/${id}` : `/static/gallery/${id}/job.json`, location.href);
  const given =
    new URLSearchParams(location.hash.slice(1)).get("token") ?? new URLSearchParams(location.search).get("token");
  if (given) url.searchParams.set("token", given);
  return url.href;
}

function entitle(): void {
  const photos = viewer.job?.views.length;
  document.title = photos ? `Scene from ${photos} photos – Scenelift` : "Scene – Scenelift";
}

viewer.addEventListener("load", entitle);
viewer.addEventListener("error", entitle);
addEventListener("hashchange", () => (viewer.src = address()));
// In a frame the start page would not open: it may not be framed.
if (window.top !== window) document.querySelector("h1 a")?.setAttribute("target", "_blank");
viewer.src = address();
