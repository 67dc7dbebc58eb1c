/** What the ways to draw a scene have in common, and how a point is found under the pointer. */

import { type Matrix4, type Object3D, type Ray, Vector3 } from "three";

/** One way to draw the scene: points, Gaussians or a mesh. */
export interface Layer {
  readonly object: Object3D;
  /** Points, Gaussians or triangles of the file. */
  readonly total: number;
  readonly drawn: number;
  /** False while there is nothing of it to see yet. */
  readonly ready?: boolean;
  /** Draw an even share of it, while the camera moves on a slow machine. */
  thin(share: number): void;
  /** Leave out the least sure share, 0 to 1. */
  leaveOut(share: number): void;
  /** World positions x y z of about so many of its points. */
  sample(count: number): Float32Array;
  /** Where a ray of the world meets it, first; `cone` is the ray's radius at distance 1. */
  pick(ray: Ray, cone: number): Vector3 | null;
  dispose(): void;
}

/** Share of the distance that a point nearer the ray's axis may lie behind one at the cone's edge. */
const FAVOUR_AXIS = 0.03;

/**
 * Index of the point that a ray meets first, or -1.
 *
 * Every point is looked at: 1.5 million take about 10 ms, once a click, and nothing has to be built before.
 * @param positions x y z after one another, in the frame of the ray
 * @param reach how far from its centre a point is hit at least; undefined: only by the cone
 */
export function firstHit(
  positions: Float32Array,
  ray: Ray,
  cone: number,
  reach?: Float32Array,
  isShown?: (index: number) => boolean,
): number {
  const { origin: o, direction: d } = ray;
  let found = -1;
  let best = Infinity;
  for (let i = 0, at = 0; at < positions.length; i++, at += 3) {
    const x = positions[at]! - o.x;
    const y = positions[at + 1]! - o.y;
    const z = positions[at + 2]! - o.z;
    const along = x * d.x + y * d.y + z * d.z;
    if (!(along > 0) || along >= best) continue;
    const radius = Math.max(cone * along, reach ? reach[i]! : 0);
    const aside = (x * x + y * y + z * z - along * along) / (radius * radius);
    const rated = along * (1 + FAVOUR_AXIS * aside);
    if (aside > 1 || rated >= best || (isShown && !isShown(i))) continue;
    best = rated;
    found = i;
  }
  return found;
}

/** About so many of the points x y z, evenly, in another frame. */
export function sampled(positions: Float32Array, count: number, matrix: Matrix4): Float32Array {
  const step = Math.max(1, Math.floor(positions.length / 3 / count));
  const some = new Float32Array(3 * Math.floor(positions.length / 3 / step));
  const at = new Vector3();
  for (let to = 0; to < some.length; to += 3) {
    at.fromArray(positions, to * step).applyMatrix4(matrix).toArray(some, to);
  }
  return some;
}

/** The 255 values that part an array's values into 256 equal shares, from a sample of it. */
export function quantiles(values: Float32Array): Float32Array {
  const step = Math.max(1, Math.floor(values.length / 100_000));
  const sample = new Float32Array(Math.ceil(values.length / step)).map((_, i) => values[i * step]!).sort();
  return new Float32Array(255).map((_, i) => sample[Math.floor(((i + 1) * sample.length) / 256)]!);
}

/** How many of 256 equal shares lie below a value: 0 to 255. */
export function rankOf(value: number, edges: Float32Array): number {
  let low = 0;
  for (let step = 128; step >= 1; step >>= 1) {
    if (edges[low + step - 1]! <= value) low += step;
  }
  return low;
}
