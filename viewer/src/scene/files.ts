/** A job's files: which of them show the scene how, and how they come. */

import { absolute, download, type FileDocument, type JobDocument } from "../api";
import type { Stage } from "./stage";

export type Representation = "gaussians" | "points" | "mesh";
/** Told the share of the bytes that have come, and how many there are. */
export type OnProgress = (share: number, bytes: number) => void;

/** The best first, as the files of Gaussians are: of equal looks the smaller. */
const FILES = {
  gaussians: ["gaussians.spz", "scene.splat", "gaussians.ply"],
  mesh: ["mesh.glb"],
  points: ["scene.ply"],
} as const;
export type SplatFile = (typeof FILES.gaussians)[number];

/** More Gaussians than that are shown only when asked for: by graphics of this kind. */
const MANY_GAUSSIANS = { large: 1_500_000, small: 600_000, software: 0 };
/** Bytes of a Gaussian: exactly in scene.splat, about in gaussians.spz. */
const GAUSSIAN_BYTES = { splat: 32, spz: 14 };

export class Files {
  /** @param address the job's own, to which its files' addresses are relative */
  constructor(
    private readonly job: JobDocument,
    private readonly address: string,
  ) {}

  named(name: string): FileDocument | undefined {
    return this.job.files.find((file) => file.name === name);
  }

  /** The file that shows the scene so, where there is one. */
  of(representation: Representation): FileDocument | undefined {
    return FILES[representation].map((name) => this.named(name)).find(Boolean);
  }

  get representations(): Representation[] {
    return (Object.keys(FILES) as Representation[]).filter((one) => this.of(one));
  }

  /** What to show first: Gaussians look best, where they can be drawn fast. */
  best(graphics: Stage["graphics"]): Representation | undefined {
    const [first, ...others] = this.representations;
    if (first !== "gaussians" || !others.length) return first;
    const exact = this.named("scene.splat");
    const count = exact ? exact.bytes / GAUSSIAN_BYTES.splat : this.of(first)!.bytes / GAUSSIAN_BYTES.spz;
    return count <= MANY_GAUSSIANS[graphics] ? first : others[0];
  }

  /** Their bytes, in the same order. Raises Problem. */
  async fetch(files: FileDocument[], onProgress: OnProgress, signal: AbortSignal): Promise<ArrayBuffer[]> {
    const total = files.reduce((sum, file) => sum + file.bytes, 0);
    const come = files.map(() => 0);
    const one = (file: FileDocument, index: number) =>
      download(
        absolute(file.url, this.address),
        (bytes) => {
          come[index] = bytes;
          onProgress(Math.min(come.reduce((sum, part) => sum + part, 0) / (total || 1), 1), total);
        },
        signal,
      );
    return Promise.all(files.map(one));
  }
}
