/** The world that is drawn: a job's cameras, turned so that y is up, and the first look at the scene. */

import { Matrix4, Quaternion, Vector3 } from "three";

/** A photo that could be placed. */
export interface Photo {
  /** Index of the view in the job. */
  view: number;
  name: string;
  width: number;
  height: number;
  /** Intrinsics in pixels of the original. */
  K: number[][];
  /** Width at distance 1 of a pixel of the grid that its points were made on. */
  pixel: number;
  /** Camera to world, both OpenGL's way: x right, y up, z back. */
  pose: Matrix4;
}

export interface World {
  /** From the axes of the job's files to the world: the reference camera at the origin, its heading along -z. */
  fromFiles: Matrix4;
  photos: Photo[];
  /** How many views the job has, placed or not. */
  views: number;
  /** Camera to world of the reference view. */
  reference: Matrix4;
}

/** What is used of cameras.json. */
export interface CamerasFile {
  reference: number;
  up: number[];
  views: {
    name: string;
    width: number;
    height: number;
    K: number[][] | null;
    K_grid: number[][] | null;
    camera_to_world: number[][] | null;
  }[];
}

export interface Pose {
  position: Vector3;
  quaternion: Quaternion;
  /** Vertical, in degrees. */
  fov: number;
}

/** Where the first look is taken from, as the preview picture's: steps in distances to what is looked at. */
const BACK = 0.18;
const ASIDE = 0.25;
const ABOVE = 0.15;
const NEAR = 0.15;
const FOV = { least: 30, most: 72 };

/** OpenCV's camera axes to OpenGL's, and back. */
export const FLIP = new Matrix4().makeScale(1, -1, -1);

/** The world of a job; without cameras that of a camera held level at the origin. */
export function worldOf(file: CamerasFile | null): World {
  const up = new Vector3(...(file?.up ?? [0, -1, 0])).normalize();
  const own = matrix(file?.views[file.reference]?.camera_to_world ?? null);
  // As the service turns its glTF files: upright, and the reference camera's heading, made level, along -z.
  const [x, , z] = axes(own);
  const right = new Vector3().crossVectors(z, up);
  if (right.length() < 0.2) right.copy(x).addScaledVector(z, -x.dot(z));
  const back = right.normalize().cross(up).normalize();
  const fromFiles = new Matrix4().makeBasis(new Vector3().crossVectors(up, back), up, back).transpose();

  const toWorld = (pose: Matrix4) => fromFiles.clone().multiply(pose).multiply(FLIP);
  const photos: Photo[] = [];
  for (const [view, { name, width, height, K, K_grid, camera_to_world }] of (file?.views ?? []).entries()) {
    if (!K || !K_grid || !camera_to_world) continue;
    photos.push({ view, name, width, height, K, pixel: 1 / K_grid[0]![0]!, pose: toWorld(matrix(camera_to_world)) });
  }
  return { fromFiles, photos, views: file?.views.length ?? 0, reference: toWorld(own) };
}

export interface Look {
  pose: Pose;
  /** What is looked at. */
  centre: Vector3;
  /** Distance to it: the measure of speeds and sizes. */
  scale: number;
  /** Distance from `centre` within which nearly all of the scene lies. */
  radius: number;
}

/** The first look: from a little behind and beside the reference camera, at the middle of what that sees. */
export function firstLook(world: World, sample: Float32Array, aspect: number): Look {
  const points = vectors(sample);
  const toCamera = world.reference.clone().invert();
  const seen = points.filter((point) => isAhead(point.clone().applyMatrix4(toCamera)));
  const centre = median(seen.length > 100 ? seen : points);
  const camera = new Vector3().setFromMatrixPosition(world.reference);
  const towards = centre.clone().sub(camera);
  const scale = towards.length() || 1;

  // Step to the side where the other cameras are: from there, most of what comes into sight was photographed too.
  const aside = new Vector3().setFromMatrixColumn(world.reference, 0);
  const others = new Vector3();
  for (const photo of world.photos) others.add(new Vector3().setFromMatrixPosition(photo.pose).sub(camera));
  const side = others.dot(aside) >= 0 ? ASIDE : -ASIDE;
  const position = camera.clone().addScaledVector(towards, -BACK).addScaledVector(aside, side * scale);
  position.y += ABOVE * scale;

  // Frame what is ahead without its strays: turn to its middle, and open the lens as far as it reaches.
  let quaternion = looking(position, centre);
  let reach = reachOf(points, position, quaternion, scale);
  const middle = new Vector3((reach.x[0] + reach.x[1]) / 2, (reach.y[0] + reach.y[1]) / 2, -1);
  quaternion = looking(position, middle.applyQuaternion(quaternion).multiplyScalar(scale).add(position));
  reach = reachOf(points, position, quaternion, scale);
  const wide = (reach.x[1] - reach.x[0]) / 2 / aspect;
  const high = (reach.y[1] - reach.y[0]) / 2;
  // All of it in a window of its own shape; in another, some of the longer side is let go.
  const half = Math.min(Math.max(wide, high), 1.3 * Math.min(wide, high));
  const fov = Math.min(Math.max((2 * Math.atan(half) * 180) / Math.PI, FOV.least), FOV.most);

  const distances = Float32Array.from(points, (point) => point.distanceTo(centre)).sort();
  const radius = distances[Math.floor(0.98 * (distances.length - 1))] || scale;
  return { pose: { position, quaternion, fov }, centre, scale, radius };
}

/** Where a photo was taken, and the lens that shows all of it in a window of this aspect. */
export function photoPose(photo: Photo, aspect: number): Pose {
  const position = new Vector3();
  const quaternion = new Quaternion();
  photo.pose.decompose(position, quaternion, new Vector3());
  const [fx, fy] = [photo.K[0]![0]!, photo.K[1]![1]!];
  const half = Math.max(photo.height / (2 * fy), photo.width / (2 * fx) / aspect);
  return { position, quaternion, fov: (2 * Math.atan(half) * 180) / Math.PI };
}

/** The turn that looks from one place at another, level. */
export function looking(from: Vector3, to: Vector3): Quaternion {
  return new Quaternion().setFromRotationMatrix(new Matrix4().lookAt(from, to, new Vector3(0, 1, 0)));
}

/** Whether a place in a camera's axes is about in its picture. */
function isAhead(at: Vector3): boolean {
  return at.z < 0 && Math.hypot(at.x, at.y) < -0.6 * at.z;
}

/** 3rd and 97th percentiles of the slopes, to the right and up, of what lies ahead. */
function reachOf(
  points: Vector3[],
  position: Vector3,
  quaternion: Quaternion,
  scale: number,
): { x: [number, number]; y: [number, number] } {
  const turn = quaternion.clone().invert();
  const ahead = points
    .map((point) => point.clone().sub(position).applyQuaternion(turn))
    .filter((at) => -at.z > Math.max(NEAR * scale, 0.5 * Math.hypot(at.x, at.y)));
  if (!ahead.length) return { x: [-0.5, 0.5], y: [-0.5, 0.5] };
  const percentiles = (values: Float32Array): [number, number] => {
    values.sort();
    return [values[Math.floor(0.03 * values.length)]!, values[Math.floor(0.97 * values.length)]!];
  };
  return {
    x: percentiles(Float32Array.from(ahead, (at) => at.x / -at.z)),
    y: percentiles(Float32Array.from(ahead, (at) => at.y / -at.z)),
  };
}

function median(points: Vector3[]): Vector3 {
  const of = (axis: "x" | "y" | "z") =>
    Float32Array.from(points, (point) => point[axis]).sort()[Math.floor(points.length / 2)] ?? 0;
  return new Vector3(of("x"), of("y"), of("z"));
}

function vectors(flat: Float32Array): Vector3[] {
  return Array.from({ length: flat.length / 3 }, (_, i) => new Vector3().fromArray(flat, 3 * i));
}

function matrix(rows: number[][] | null): Matrix4 {
  return rows ? new Matrix4().fromArray(rows.flat()).transpose() : new Matrix4();
}

function axes(pose: Matrix4): [Vector3, Vector3, Vector3] {
  const [x, y, z] = [new Vector3(), new Vector3(), new Vector3()];
  pose.extractBasis(x, y, z);
  return [x, y, z];
}
