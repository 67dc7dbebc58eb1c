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

import { firstHit, type Layer, quantiles, rankOf } from "./layer";
import { readVertices } from "./ply";

/** Diameter of a point's disc in spacings: 1 would just touch its neighbours, more closes surfaces seen aslant. */
const DISC = 1.6;
/** A disc is at most so many times as wide as its view's pixels are at its distance: gaps at depth edges stay open. */
const WIDEST = 3;

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
  private readonly ranks: Uint8Array;
  private readonly fewer = new Float32Array(257);
  private share = 1;

  /**
   * @param bytes scene.ply
   * @param fromFiles its axes to the world's
   * @param centres where each view's camera is, in the file's axes
   * @param most points to keep, at most: evenly some of a file that has more
   */
  constructor(bytes: ArrayBuffer, fromFiles: Matrix4, centres: Map<number, Vector3>, most: number) {
    const read = readPoints(bytes, centres, most);
    this.total = read.total;
    this.count = read.spacing.length;
    this.ranks = read.tones.filter((_, i) => i % 4 === 3);
    for (const rank of this.ranks) this.fewer[rank + 1]! += 1 / (this.count || 1);
    for (let i = 1; i <= 256; i++) this.fewer[i]! += this.fewer[i - 1]!;

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
    this.share = share;
    // They lie shuffled: any beginning is an even part.
    this.object.geometry.setDrawRange(0, Math.ceil(share * this.count));
  }

  leaveOut(share: number): void {
    this.object.material.uniforms.leastSure!.value = share;
  }

  sample(count: number): Float32Array {
    const { array } = this.object.geometry.attributes.position as BufferAttribute;
    const some = array.slice(0, 3 * Math.min(count, this.count)) as Float32Array;
    new BufferAttribute(some, 3).applyMatrix4(this.object.matrix);
    return some;
  }

  pick(ray: Ray, cone: number): Vector3 | null {
    const { position, spacing } = this.object.geometry.attributes;
    const own = ray.clone().applyMatrix4(this.object.matrix.clone().invert());
    const least = 256 * this.leastSure;
    const isShown = (index: number) => this.ranks[index]! + 0.5 >= least;
    const found = firstHit(position!.array as Float32Array, own, cone, spacing!.array as Float32Array, isShown);
    return found < 0 ? null : new Vector3().fromBufferAttribute(position!, found).applyMatrix4(this.object.matrix);
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

interface Read {
  total: number;
  positions: Float32Array;
  /** Red, green, blue and how many of 256 equal shares of all points are less sure. */
  tones: Uint8Array;
  /** Distance to the neighbours on the surface, about. */
  spacing: Float32Array;
}

function readPoints(bytes: ArrayBuffer, centres: Map<number, Vector3>, most: number): Read {
  const file = readVertices(bytes);
  const [x, y, z] = ["x", "y", "z"].map((name) => file.reader(name));
  if (!x || !y || !z) throw new Error("This PLY file has no points.");
  const white = () => 255;
  const [red, green, blue] = ["red", "green", "blue"].map((name) => file.reader(name) ?? white);
  const sureness = file.reader("confidence") ?? (() => 1);
  const view = file.reader("view") ?? (() => 0);

  const step = Math.max(1, Math.ceil(file.count / most));
  const count = Math.floor(file.count / step);
  const byteOf = (index: number) => file.start + index * step * file.stride;

  // In the file's order, which is that of the photos' pixels, neighbours follow one another.
  const wide = new Float32Array(count);
  const depth = new Float32Array(count);
  const sure = new Float32Array(count);
  const pixels = new Map<number, number>();
  let [px, py, pz, pview] = [NaN, NaN, NaN, -1];
  let centre = new Vector3();
  for (let i = 0; i < count; i++) {
    const byte = byteOf(i);
    const [cx, cy, cz, cview] = [x(byte), y(byte), z(byte), view(byte)];
    if (cview !== pview) {
      px = NaN;
      centre = centres.get(cview) ?? new Vector3();
    }
    const gap = Math.hypot(cx - px, cy - py, cz - pz);
    wide[i] = gap || Infinity;
    if (i > 0 && gap < wide[i - 1]!) wide[i - 1] = gap;
    depth[i] = Math.hypot(cx - centre.x, cy - centre.y, cz - centre.z);
    sure[i] = sureness(byte);
    [px, py, pz, pview] = [cx, cy, cz, cview];
  }
  for (let begin = 0; begin < count; ) {
    const own = view(byteOf(begin));
    let end = begin;
    while (end < count && view(byteOf(end)) === own) end++;
    pixels.set(own, typicalRatio(wide.subarray(begin, end), depth.subarray(begin, end)));
    begin = end;
  }

  const edges = quantiles(sure);
  const order = shuffled(count);
  const positions = new Float32Array(3 * count);
  const tones = new Uint8Array(4 * count);
  const spacing = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const from = order[i]!;
    const byte = byteOf(from);
    positions[3 * i] = x(byte);
    positions[3 * i + 1] = y(byte);
    positions[3 * i + 2] = z(byte);
    tones[4 * i] = red!(byte);
    tones[4 * i + 1] = green!(byte);
    tones[4 * i + 2] = blue!(byte);
    tones[4 * i + 3] = rankOf(sure[from]!, edges);
    const pixel = pixels.get(view(byte))! * depth[from]!;
    // A file of which only some is kept has gaps along its rows that its columns do not have.
    spacing[i] = Math.min(Math.max(wide[from]! / Math.sqrt(step), pixel), WIDEST * pixel);
  }
  return { total: file.count, positions, tones, spacing };
}

/** Width of a view's pixels at distance 1: the median of spacing by distance, of some of its points. */
function typicalRatio(spacing: Float32Array, depth: Float32Array): number {
  const step = Math.max(1, Math.floor(spacing.length / 5_000));
  const ratios = new Float32Array(Math.ceil(spacing.length / step)).map((_, i) => spacing[i * step]! / depth[i * step]!);
  const finite = ratios.filter((ratio) => ratio < Infinity).sort();
  return finite[Math.floor(finite.length / 2)] ?? 0.005;
}

/** 0 to count - 1 in an order that looks random and is the same every time. */
function shuffled(count: number): Uint32Array {
  const order = new Uint32Array(count).map((_, i) => i);
  let state = 1;
  for (let i = count - 1; i > 0; i--) {
    // Numerical Recipes' linear congruential generator; its upper bits are the random ones.
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    const kept = order[i]!;
    order[i] = order[j]!;
    order[j] = kept;
  }
  return order;
}
