/** The distance between two places on the surface: marks, a line, and its length in scene units. */

import { CanvasTexture, Group, Sprite, SpriteMaterial, SRGBColorSpace, type Vector3 } from "three";
import { LineMaterial } from "three/addons/lines/LineMaterial.js";
import { LineSegments2 } from "three/addons/lines/LineSegments2.js";
import { LineSegmentsGeometry } from "three/addons/lines/LineSegmentsGeometry.js";

/** Sizes on the canvas in CSS pixels. */
const MARK = 14;
const LABEL = { width: 96, height: 28 };
const DARK = "#16211f";
/** Canvas pixels for each, so that text is sharp. */
const SHARP = 3;

export class Measure {
  readonly object = new Group();
  private readonly ends: Vector3[] = [];

  /** Set the first end, then the second, then a first again; the distance once there are both. */
  add(place: Vector3): number | null {
    if (this.ends.length === 2) this.clear();
    this.ends.push(place);
    this.object.add(sprite(disc(), place, MARK, MARK));
    const [from, to] = this.ends;
    if (!from || !to) return null;
    const distance = from.distanceTo(to);
    const middle = from.clone().lerp(to, 0.5);
    const text = sprite(label(`${distance.toPrecision(3)} units`), middle, LABEL.width, LABEL.height);
    // Above the line, which it would hide.
    text.center.y = -0.4;
    // Dark below light: seen on every colour.
    this.object.add(line(from, to, DARK, 5), line(from, to, "white", 2), text);
    return distance;
  }

  get isEmpty(): boolean {
    return !this.ends.length;
  }

  clear(): void {
    this.ends.length = 0;
    for (const part of [...this.object.children] as (Sprite | LineSegments2)[]) {
      part.removeFromParent();
      if (part instanceof LineSegments2) part.geometry.dispose();
      else part.material.map?.dispose();
      part.material.dispose();
    }
  }

  /** Keep marks and label at their size in pixels; `pixel` is the tangent of the angle of one. */
  fit(pixel: number): void {
    for (const part of this.object.children) {
      const size = part.userData.size as [number, number] | undefined;
      if (size) part.scale.set(size[0] * pixel, size[1] * pixel, 1);
    }
  }
}

function sprite(canvas: HTMLCanvasElement, place: Vector3, width: number, height: number): Sprite {
  const map = new CanvasTexture(canvas);
  map.colorSpace = SRGBColorSpace;
  const made = new Sprite(new SpriteMaterial({ map, depthTest: false, sizeAttenuation: false, transparent: true }));
  made.position.copy(place);
  made.renderOrder = 21;
  made.userData.size = [width, height];
  return made;
}

function line(from: Vector3, to: Vector3, color: string, linewidth: number): LineSegments2 {
  const geometry = new LineSegmentsGeometry().setPositions([...from, ...to]);
  const made = new LineSegments2(geometry, new LineMaterial({ color, linewidth, depthTest: false, transparent: true }));
  made.renderOrder = 20;
  return made;
}

function disc(): HTMLCanvasElement {
  const [canvas, context] = blank(MARK, MARK);
  const middle = (SHARP * MARK) / 2;
  context.lineWidth = 2 * SHARP;
  context.strokeStyle = "white";
  context.fillStyle = "#0f766e";
  context.beginPath();
  context.arc(middle, middle, middle - 2 * SHARP, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
  return canvas;
}

function label(text: string): HTMLCanvasElement {
  const [canvas, context] = blank(LABEL.width, LABEL.height);
  context.fillStyle = DARK;
  context.beginPath();
  context.roundRect(0, 0, canvas.width, canvas.height, canvas.height / 2);
  context.fill();
  context.fillStyle = "white";
  context.font = `600 ${14 * SHARP}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, canvas.width / 2, canvas.height / 2 + SHARP);
  return canvas;
}

function blank(width: number, height: number): [HTMLCanvasElement, CanvasRenderingContext2D] {
  const canvas = document.createElement("canvas");
  canvas.width = SHARP * width;
  canvas.height = SHARP * height;
  return [canvas, canvas.getContext("2d")!];
}
