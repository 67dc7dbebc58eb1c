/** The photos, where they were taken: each on the image plane of its camera, with its number. */

import {
  BufferAttribute,
  BufferGeometry,
  CanvasTexture,
  Color,
  DoubleSide,
  Group,
  LinearFilter,
  Matrix3,
  Mesh,
  MeshBasicMaterial,
  type Ray,
  Raycaster,
  Sprite,
  SpriteMaterial,
  SRGBColorSpace,
  Texture,
  Vector3,
} from "three";
import { LineMaterial } from "three/addons/lines/LineMaterial.js";
import { LineSegments2 } from "three/addons/lines/LineSegments2.js";
import { LineSegmentsGeometry } from "three/addons/lines/LineSegmentsGeometry.js";

import type { Photo, World } from "./world";

/** Length of a frustum: this share of the typical step between photos, within these of the scene's scale. */
const OF_STEP = 0.45;
const OF_SCALE = { least: 0.035, most: 0.075 };
/** Lengths of a frustum from the eye within which it would hide the scene. */
const CLEAR = { moving: 1.5, standing: 5 };
/** Side in pixels of a photo's cell in photos.webp. */
const CELL = 384;
const LINE = { plain: new Color("#0f766e"), lit: new Color("#f59e0b") };
/** CSS pixels. */
const WIDTH = { plain: 1.5, lit: 4 };
/** Opacity of a face without its photo. */
const FACE = 0.25;

export class Photos {
  readonly object = new Group();
  private readonly frusta = new Map<number, Frustum>();
  private readonly length: number;
  private atlas: Texture | null = null;
  private stood: number | null = null;
  private lit: number | null = null;
  private visible = true;
  private readonly eye = new Vector3();

  constructor(
    private readonly world: World,
    scale: number,
  ) {
    const places = world.photos.map(({ pose }) => new Vector3().setFromMatrixPosition(pose));
    const steps = places.map((place) =>
      Math.min(...places.filter((other) => other !== place).map((other) => other.distanceTo(place))),
    );
    const step = steps.filter(Number.isFinite).sort((a, b) => a - b)[Math.floor(steps.length / 2)] ?? scale;
    this.length = Math.min(Math.max(OF_STEP * step, OF_SCALE.least * scale), OF_SCALE.most * scale);
    for (const photo of world.photos) {
      const frustum = new Frustum(photo, this.length);
      this.frusta.set(photo.view, frustum);
      this.object.add(frustum.object);
    }
  }

  /** @param image photos.webp: cells row by row, each photo upright in the upper left of its own. */
  set pictures(image: ImageBitmap) {
    this.atlas = new Texture(image);
    this.atlas.colorSpace = SRGBColorSpace;
    this.atlas.flipY = false;
    this.atlas.generateMipmaps = false;
    this.atlas.minFilter = LinearFilter;
    this.atlas.needsUpdate = true;
    const columns = Math.ceil(Math.sqrt(this.world.views));
    for (const frustum of this.frusta.values()) frustum.picture(this.atlas, columns, image);
  }

  /** The view whose photo a ray meets first, or null. */
  pick(ray: Ray): number | null {
    const seen = [...this.frusta.values()].filter(({ photo, object }) => object.visible && photo.view !== this.stood);
    const faces = seen.map(({ face }) => face);
    const [hit] = new Raycaster(ray.origin, ray.direction).intersectObjects(faces, false);
    return hit ? (hit.object.userData.view as number) : null;
  }

  /** The view under the pointer. */
  get highlit(): number | null {
    return this.lit;
  }

  set highlit(view: number | null) {
    if (this.lit !== null) this.frusta.get(this.lit)!.highlit = false;
    this.lit = view;
    if (view !== null) this.frusta.get(view)!.highlit = true;
  }

  /** The view stood at: seen from inside, its photo lies over the scene as far as `opacity` says. */
  stand(view: number | null, opacity: number): void {
    if (this.stood !== null && this.stood !== view) this.frusta.get(this.stood)?.wear(null);
    this.stood = view;
    if (view !== null) this.frusta.get(view)?.wear(opacity);
    this.shown = this.visible;
  }

  /** Whether the frusta are seen; the photo over the scene is in any case. */
  set shown(visible: boolean) {
    this.visible = visible;
    this.clear(this.eye);
  }

  /** Show those that do not stand in the way of an eye. */
  clear(eye: Vector3): void {
    this.eye.copy(eye);
    const near = (this.stood === null ? CLEAR.moving : CLEAR.standing) * this.length;
    for (const [view, { object }] of this.frusta) {
      const distance = new Vector3().setFromMatrixPosition(object.matrix).distanceTo(eye);
      object.visible = view === this.stood || (this.visible && distance > near);
    }
  }

  dispose(): void {
    for (const frustum of this.frusta.values()) frustum.dispose();
    this.atlas?.dispose();
    (this.atlas?.image as ImageBitmap | undefined)?.close();
  }
}

class Frustum {
  readonly object = new Group();
  readonly face: Mesh<BufferGeometry, MeshBasicMaterial>;
  private readonly lines: LineSegments2;
  private readonly badge: Sprite;

  constructor(
    readonly photo: Photo,
    length: number,
  ) {
    const { width, height, pose } = photo;
    const inverse = new Matrix3().set(...(photo.K.flat() as Nine)).invert();
    // Pixels to the image plane, and OpenCV's axes to OpenGL's.
    const corner = (x: number, y: number) => {
      const at = new Vector3(x, y, 1).applyMatrix3(inverse).multiplyScalar(length);
      return [at.x, -at.y, -at.z];
    };
    const corners = [corner(0, 0), corner(width, 0), corner(width, height), corner(0, height)];
    const apex = [0, 0, 0];
    const lines = corners.flatMap((here, i) => [...apex, ...here, ...here, ...corners[(i + 1) % 4]!]);
    const geometry = new LineSegmentsGeometry().setPositions(lines);
    this.lines = new LineSegments2(geometry, new LineMaterial({ color: LINE.plain, linewidth: WIDTH.plain }));

    const plane = new BufferGeometry();
    plane.setAttribute("position", new BufferAttribute(new Float32Array(corners.flat()), 3));
    plane.setIndex([0, 3, 2, 0, 2, 1]);
    const material = new MeshBasicMaterial({ color: LINE.plain, transparent: true, opacity: FACE, side: DoubleSide });
    this.face = new Mesh(plane, material);
    this.face.userData.view = photo.view;

    this.badge = new Sprite(new SpriteMaterial({ map: numeral(photo.view + 1), transparent: true }));
    const [left, top] = [corners[0]![0]!, corners[0]![1]!];
    this.badge.position.set(left, top, -length);
    this.badge.scale.setScalar(0.24 * length);

    this.object.add(this.lines, this.face, this.badge);
    this.object.matrix.copy(pose);
    this.object.matrixAutoUpdate = false;
  }

  picture(atlas: Texture, columns: number, { width, height }: ImageBitmap): void {
    const { photo, face } = this;
    const longer = Math.max(photo.width, photo.height);
    const left = (photo.view % columns) * CELL;
    const top = Math.floor(photo.view / columns) * CELL;
    // Half a pixel in from the edges: beyond them lies the next photo.
    const right = left + (CELL * photo.width) / longer - 0.5;
    const bottom = top + (CELL * photo.height) / longer - 0.5;
    const pixels = [left + 0.5, top + 0.5, right, top + 0.5, right, bottom, left + 0.5, bottom];
    const uv = new Float32Array(pixels.map((value, i) => value / (i % 2 ? height : width)));
    face.geometry.setAttribute("uv", new BufferAttribute(uv, 2));
    face.material.map = atlas;
    face.material.color.set("white");
    face.material.opacity = 1;
    face.material.needsUpdate = true;
  }

  set highlit(on: boolean) {
    const look = on ? "lit" : "plain";
    this.lines.material.color.copy(LINE[look]);
    this.lines.material.linewidth = WIDTH[look];
    this.face.material.opacity = this.face.material.map ? 1 : on ? 2 * FACE : FACE;
  }

  /** Be the photo over the scene, with an opacity; null: be a frustum again. */
  wear(opacity: number | null): void {
    const worn = opacity !== null;
    this.lines.visible = this.badge.visible = !worn;
    this.face.visible = !worn || (opacity > 0 && this.face.material.map !== null);
    this.face.material.opacity = worn ? opacity : this.face.material.map ? 1 : FACE;
    this.face.material.depthTest = !worn;
    this.face.renderOrder = worn ? 10 : 0;
  }

  dispose(): void {
    for (const part of [this.lines, this.face]) {
      part.geometry.dispose();
      part.material.dispose();
    }
    this.badge.material.map?.dispose();
    this.badge.material.dispose();
  }
}

type Nine = [number, number, number, number, number, number, number, number, number];

/** A number on a disc. */
function numeral(number: number): CanvasTexture {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  const context = canvas.getContext("2d")!;
  context.fillStyle = "#0f766e";
  context.beginPath();
  context.arc(32, 32, 30, 0, 2 * Math.PI);
  context.fill();
  context.fillStyle = "white";
  context.font = "600 34px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(String(number), 32, 34);
  const texture = new CanvasTexture(canvas);
  texture.colorSpace = SRGBColorSpace;
  return texture;
}
