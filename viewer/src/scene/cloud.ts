/** The scene as points, from scene.ply. */

import {
  BufferAttribute,
  BufferGeometry,
  type Matrix4,
  Points,
  type PerspectiveCamera,
  type Ray,
  ShaderMaterial,
  Vector2,
  Vector3,
  type WebGLRenderer,
} from "three";

import { firstHit, type Layer, quantiles, rankOf, sampled } from "./layer";
import { readVertices } from "./ply";
import { Sureness } from "./sureness";

/** Diameter of a point's disc in spacings: 1 would just touch its neighbours, more closes surfaces seen aslant. */
const DISC = 1.45;
/** A disc that would be so many times as wide as is typical at its distance is none: its point stands at an edge. */
const WIDEST = 2.5;
/** Parts of the points that can be drawn one by one. */
const HEAPS = 64;

const VERTEX = /* glsl */ `
attribute vec4 tone;
attribute float spacing;
uniform float leastSure;
uniform float pixels;
varying vec3 colour;

void main() {
  vec4 seen = modelViewMatrix * vec4(position, 1.0);
  gl_Position = projectionMatrix * seen;
  gl_PointSize = clamp(pixels * spacing / -seen.z, 1.0, 64.0);
  colour = tone.rgb;
  // Outside of what is drawn.
  if (tone.a * 255.0 + 0.5 < leastSure * 256.0) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
}`;

/** Colours of photos go to the canvas as they are: both are sRGB. */
const FRAGMENT = /* glsl */ `
varying vec3 colour;

void main() {
  vec2 off = gl_PointCoord - 0.5;
  if (dot(off, off) > 0.25) discard;
  gl_FragColor = vec4(colour, 1.0);
}`;

export class Cloud implements Layer {
  readonly object: Points<BufferGeometry, ShaderMaterial>;
  /** A factor on the points' size. */
  size = 1;

  private readonly count: number;
  private readonly ends: Uint32Array;
  private readonly ranks: Uint8Array;
  /** Share of the points below each rank. */
  private readonly fewer: Float32Array;
  private share = 1;

  /**
   * @param bytes scene.ply
   * @param fromFiles its axes to the world's
   * @param eyes what each view's points were seen from
   * @param most points to keep, at most: evenly some of a file that has more
   */
  constructor(bytes: ArrayBuffer, fromFiles: Matrix4, eyes: Map<number, Eye>, most: number) {
    const read = readPoints(bytes, eyes, most);
    this.total = read.total;
    this.count = read.spacing.length;
    this.ends = read.ends;
    this.ranks = read.ranks;
    this.fewer = sharesBelow(read.ranks);

    const geometry = new BufferGeometry();
    geometry.setAttribute("position", new BufferAttribute(read.positions, 3));
    geometry.setAttribute("tone", new BufferAttribute(read.tones, 4, true));
    geometry.setAttribute("spacing", new BufferAttribute(read.spacing, 1));
    const uniforms = { leastSure: { value: 0 }, pixels: { value: 1 } };
    this.object = new Points(
      geometry,
      new ShaderMaterial({ vertexShader: VERTEX, fragmentShader: FRAGMENT, uniforms }),
    );
    this.object.matrix.copy(fromFiles);
    this.object.matrixAutoUpdate = false;
    this.object.frustumCulled = false;
    this.object.onBeforeRender = (renderer, _scene, camera) => this.sizeUp(renderer, camera as PerspectiveCamera);
  }

  readonly total: number;

  get drawn(): number {
    const hidden = this.fewer[Math.round(256 * this.leastSure)]!;
    return Math.round(this.share * this.count * (1 - hidden));
  }

  thin(share: number): void {
    const count = this.ends[Math.max(Math.ceil(share * HEAPS), 1) - 1]!;
    this.share = count / this.count;
    this.object.geometry.setDrawRange(0, count);
  }

  leaveOut(share: number): void {
    this.object.material.uniforms.leastSure!.value = share;
  }

  sample(count: number): Float32Array {
    const { array } = this.object.geometry.attributes.position as BufferAttribute;
    return sampled(array as Float32Array, count, this.object.matrix);
  }

  pick(ray: Ray, cone: number): Vector3 | null {
    const { position, spacing } = this.object.geometry.attributes;
    const own = ray.clone().applyMatrix4(this.object.matrix.clone().invert());
    const least = 256 * this.leastSure;
    const isShown = (index: number) => this.ranks[index]! + 0.5 >= least;
    const found = firstHit(position!.array as Float32Array, own, cone, spacing!.array as Float32Array, isShown);
    return found < 0 ? null : new Vector3().fromBufferAttribute(position!, found).applyMatrix4(this.object.matrix);
  }

  /** How sure each of them is, by its place in the file's axes. */
  get sureness(): Sureness {
    return new Sureness(this.object.geometry.attributes.position!.array as Float32Array, this.ranks);
  }

  dispose(): void {
    this.object.geometry.dispose();
    this.object.material.dispose();
  }

  private get leastSure(): number {
    return this.object.material.uniforms.leastSure!.value as number;
  }

  private sizeUp(renderer: WebGLRenderer, camera: PerspectiveCamera): void {
    const { y: height } = renderer.getDrawingBufferSize(new Vector2());
    const perUnit = height / (2 * Math.tan((camera.fov * Math.PI) / 360));
    // Fewer points have to be larger to close the same surface; not wholly, else their edges would fray.
    this.object.material.uniforms.pixels!.value = (DISC * this.size * perUnit) / Math.sqrt(Math.max(this.share, 0.2));
    this.object.material.uniformsNeedUpdate = true;
  }
}

/** The camera of a view, by which the distances between its points are judged. */
export interface Eye {
  /** In the file's axes. */
  centre: Vector3;
  /** Width at distance 1 of a pixel of the grid that the points were made on. */
  pixel: number;
}

interface Read {
  total: number;
  positions: Float32Array;
  /** Red, green, blue and rank. */
  tones: Uint8Array;
  /** How many of 256 equal shares of all points are less sure. */
  ranks: Uint8Array;
  /** Distance to the neighbours on the surface, about. */
  spacing: Float32Array;
  /** Where the heaps end that they are dealt onto. */
  ends: Uint32Array;
}

function readPoints(bytes: ArrayBuffer, eyes: Map<number, Eye>, most: number): Read {
  const file = readVertices(bytes);
  const step = Math.max(1, Math.ceil(file.count / most));
  const column = (name: string, fallback: number) =>
    file.column(name, step) ?? new Float32Array(Math.floor(file.count / step)).fill(fallback);
  const [x, y, z] = [column("x", 0), column("y", 0), column("z", 0)];
  const [red, green, blue] = [column("red", 255), column("green", 255), column("blue", 255)];
  const sure = column("confidence", 1);
  const gaps = spacings(x, y, z, column("view", 0), eyes);

  const edges = quantiles(sure);
  const { places, ends } = dealt(x.length);
  const positions = new Float32Array(3 * x.length);
  const tones = new Uint8Array(4 * x.length);
  const ranks = new Uint8Array(x.length);
  const spacing = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) {
    const to = places[i]!;
    positions[3 * to] = x[i]!;
    positions[3 * to + 1] = y[i]!;
    positions[3 * to + 2] = z[i]!;
    tones[4 * to] = red[i]!;
    tones[4 * to + 1] = green[i]!;
    tones[4 * to + 2] = blue[i]!;
    tones[4 * to + 3] = ranks[to] = rankOf(sure[i]!, edges);
    spacing[to] = gaps[i]!;
  }
  return { total: file.count, positions, tones, ranks, spacing, ends };
}

/**
 * Each point's distance to its neighbours on the surface, about.
 *
 * In the file's order, which is that of the photos' pixels, the nearer of a point's two neighbours in its row counts.
 */
function spacings(x: Float32Array, y: Float32Array, z: Float32Array, view: Float32Array, eyes: Map<number, Eye>) {
  const gaps = new Float32Array(x.length);
  const depth = new Float32Array(x.length);
  for (let begin = 0, end = 0; begin < x.length; begin = end) {
    const eye = eyes.get(view[begin]!);
    const { x: ex, y: ey, z: ez } = eye?.centre ?? new Vector3();
    let last = Infinity;
    for (end = begin; end < x.length && view[end] === view[begin]; end++) {
      const [cx, cy, cz] = [x[end]!, y[end]!, z[end]!];
      const next = end + 1 < x.length ? distance(cx - x[end + 1]!, cy - y[end + 1]!, cz - z[end + 1]!) : Infinity;
      gaps[end] = Math.min(last, next);
      depth[end] = distance(cx - ex, cy - ey, cz - ez);
      last = next;
    }
    const along = typicalRatio(gaps.subarray(begin, end), depth.subarray(begin, end));
    // Where only some points are kept, gaps along rows grow faster than those on the surface: as its square.
    const typical = Math.sqrt(along * Math.min(eye?.pixel ?? along, along));
    for (let i = begin; i < end; i++) {
      const least = typical * depth[i]!;
      const wide = (typical / along) * gaps[i]!;
      gaps[i] = wide > least && wide < WIDEST * least ? wide : least;
    }
  }
  return gaps;
}

/** Math.hypot is exact at the ends of its range, and ten times slower. */
function distance(x: number, y: number, z: number): number {
  return Math.sqrt(x * x + y * y + z * z);
}

function sharesBelow(ranks: Uint8Array): Float32Array {
  const counts = new Uint32Array(256);
  for (let i = 0; i < ranks.length; i++) counts[ranks[i]!]!++;
  const shares = new Float32Array(257);
  for (let rank = 0; rank < 256; rank++) shares[rank + 1] = shares[rank]! + counts[rank]! / ranks.length;
  return shares;
}

/** The median of spacing by distance, of some of a view's points. */
function typicalRatio(spacing: Float32Array, depth: Float32Array): number {
  const step = Math.max(1, Math.floor(spacing.length / 5_000));
  const count = Math.ceil(spacing.length / step);
  const ratios = new Float32Array(count).map((_, i) => spacing[i * step]! / depth[i * step]!);
  const finite = ratios.filter((ratio) => ratio < Infinity).sort();
  return finite[Math.floor(finite.length / 2)] ?? 0.005;
}

/**
 * Deals the points onto heaps as if by chance, the same way every time: any number of whole heaps is an even part.
 *
 * Wholly shuffled, each point would be a miss of the processor's cache, and a large file would take twice as long.
 * @returns where each point goes, and where each heap ends
 */
function dealt(count: number): { places: Uint32Array; ends: Uint32Array } {
  const heaps = new Uint8Array(count);
  const ends = new Uint32Array(HEAPS);
  let state = 1;
  for (let i = 0; i < count; i++) {
    // Numerical Recipes' linear congruential generator, whose upper bits are the random ones.
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const heap = (heaps[i] = Math.floor((state / 2 ** 32) * HEAPS));
    ends[heap]!++;
  }
  for (let heap = 1; heap < HEAPS; heap++) ends[heap]! += ends[heap - 1]!;
  const next = new Uint32Array(HEAPS);
  next.set(ends.subarray(0, HEAPS - 1), 1);
  const places = new Uint32Array(count);
  for (let i = 0; i < count; i++) places[i] = next[heaps[i]!]!++;
  return { places, ends };
}
