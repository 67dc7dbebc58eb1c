/** The scene in a canvas: what is drawn, and from where. */

import type { JobDocument } from "../api";

export type Representation = "gaussians" | "points" | "mesh";
export type Walking = "orbit" | "walk";

/** WebGL 2 cannot be had here. */
export class NoWebGL extends Error {
  override readonly name = "NoWebGL";
}

export interface Shown {
  representation: Representation;
  /** Points, Gaussians or triangles of the file, and how many of them are drawn. */
  total: number;
  drawn: number;
}

/**
 * Draws a job's scene. World: OpenCV axes turned so that y is up, the scene's floor level.
 * Events: `measured` (detail: distance in scene units, or null), `stood` (detail: index of the view stood at, or null).
 */
export class SceneView extends EventTarget {
  /** Throws NoWebGL. */
  constructor(readonly canvas: HTMLCanvasElement) {
    super();
    throw new NoWebGL("not yet");
  }

  /** Read cameras and photos, then show the wanted representation, or the best that the job has. */
  async open(
    _job: JobDocument,
    _address: string,
    _onProgress: (share: number) => void,
    _signal: AbortSignal,
    _wanted?: Representation,
  ): Promise<Shown> {
    throw new Error("not yet");
  }

  /** Those that the job's files allow. */
  get representations(): Representation[] {
    return [];
  }

  async show(_representation: Representation, _onProgress: (share: number) => void, _signal: AbortSignal): Promise<Shown> {
    throw new Error("not yet");
  }

  /** Leave out the least sure share (0 to 1) of what is drawn. Acts at once. */
  set leastSure(_share: number) {}
  /** Factor on the size of points. */
  set pointSize(_factor: number) {}
  /** A CSS colour. */
  set background(_colour: string) {}
  set frusta(_visible: boolean) {}
  set walking(_how: Walking) {}
  /** While on, two clicks measure a distance. */
  set measuring(_on: boolean) {}

  /** Fly to where a photo was taken. */
  standAt(_view: number): void {}
  /** Fly back to the first look at the scene. */
  home(): void {}
  screenshot(): Promise<Blob> {
    throw new Error("not yet");
  }
  dispose(): void {}
}
