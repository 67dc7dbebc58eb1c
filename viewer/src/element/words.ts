/** Names for people: of stages, files and quantities. */

import type { JobDocument } from "../api";
import type { Representation, Shown } from "../scene/view";

export const REPRESENTATIONS: Record<Representation, string> = {
  gaussians: "Gaussians",
  mesh: "Mesh",
  points: "Points",
};

const STAGES: Record<string, string> = {
  queued: "Waiting its turn",
  loading: "Reading the photos",
  choosing: "Choosing the main photo",
  waiting: "Waiting for the model",
  opening: "Opening the model",
  forward: "Seeing the place in 3D",
  poses: "Finding where each photo was taken",
  dense: "Measuring depth in every photo",
  completion: "Filling gaps",
  alignment: "Bringing the photos into one space",
  cameras: "Finding the cameras",
  fusion: "Putting the scene together",
  formats: "Writing the files",
  storing: "Saving",
};

/** What a job is doing. */
export function stage(name: string): string {
  return STAGES[name] ?? name;
}

/** What a job's measured times were spent on, in the order of the work, seconds each. */
export function times(job: JobDocument): { name: string; seconds: number }[] {
  const seconds = (name: string) => job.metrics[`${name}_seconds`] ?? 0;
  const inner = ["poses", "dense", "completion"].filter((name) => seconds(name) > 0);
  return [
    { name: "Waiting", seconds: seconds("queue") + seconds("wait") },
    { name: stage("loading"), seconds: seconds("load") },
    // `forward` is the sum of the model's own stages, where it tells of them.
    ...(inner.length ? inner : ["forward"]).map((name) => ({ name: stage(name), seconds: seconds(name) })),
    ...["cameras", "fusion", "formats"].map((name) => ({ name: stage(name), seconds: seconds(name) })),
    { name: stage("storing"), seconds: seconds("store") },
  ].filter((time) => time.seconds >= 0.005);
}

/** What each file is for. */
export const FILES: Record<string, string> = {
  "scene.ply": "Coloured points, with how sure each is. For CloudCompare, MeshLab, Open3D.",
  "scene.glb": "The points and the cameras. For Blender and any glTF viewer.",
  "mesh.glb": "A surface with the photos on it. For Blender, Unity, Windows and Apple viewers.",
  "scene.splat": "Gaussians. For web viewers.",
  "gaussians.ply": "Gaussians, uncompressed. For SuperSplat and other splat editors.",
  "gaussians.spz": "Gaussians, compressed. For web and phone viewers.",
  "cameras.json": "Where each photo was taken, and with what lens.",
  "colmap.zip": "Cameras and photos. For COLMAP and tools that read it.",
  "transforms.json": "Cameras. For nerfstudio.",
  "pointmaps.npz": "A 3D point for every pixel of every photo. For Python.",
  "preview.webp": "The picture of the scene.",
  "photos.webp": "All photos, small, on one sheet.",
  "matches.npz": "Pixels that show the same point. For Python.",
  "matches.webp": "A drawing of such pixels in two photos.",
  "depth.zip": "How far every pixel is, as 16-bit PNG.",
};

export function bytes(count: number): string {
  const units = ["bytes", "kB", "MB", "GB"];
  let power = 0;
  while (count >= 1000 && power < units.length - 1) {
    count /= 1000;
    power += 1;
  }
  return `${count.toLocaleString("en", { maximumSignificantDigits: 3 })} ${units[power]}`;
}

export function count(number: number, one: string, many = `${one}s`): string {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function percent(share: number): string {
  return `${Math.floor(100 * share)} %`;
}

export function duration(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

export function when(date: string): string {
  return new Date(date).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}

const UNITS = { gaussians: "Gaussian", points: "point", mesh: "triangle" };

/** How much of a scene is drawn. */
export function seen({ representation, total, drawn }: Shown): string {
  const all = count(total, UNITS[representation]);
  return drawn < total ? `${drawn.toLocaleString("en")} of ${all}` : all;
}

/** A length in a scene. Its unit is the scene's own, so three digits tell all there is. */
export function distance(units: number): string {
  return `${units.toLocaleString("en", { maximumSignificantDigits: 3 })} units`;
}
