/** The scene as Gaussians, drawn by Spark. This module is large with it: import it only when it is needed. */

import { dyno, SparkRenderer, SplatFileType, SplatMesh } from "@sparkjsdev/spark";
import { DataTexture, Group, type Matrix4, type Ray, RedFormat, Vector3, type WebGLRenderer } from "three";

import type { SplatFile } from "./files";
import { firstHit, type Layer, quantiles, rankOf, sampled } from "./layer";
import type { Sureness } from "./sureness";
import { FLIP } from "./world";

const TYPES: Record<SplatFile, SplatFileType> = {
  "gaussians.spz": SplatFileType.SPZ,
  "scene.splat": SplatFileType.SPLAT,
  "gaussians.ply": SplatFileType.PLY,
};
/** Width of the texture that holds a rank for each Gaussian. */
const WIDTH = 2048;

export class Splats implements Layer {
  readonly object = new Group();
  readonly total: number;

  private readonly least = dyno.dynoFloat(0);
  private readonly ranks: Uint8Array<ArrayBuffer>;
  private readonly texels: DataTexture;
  private readonly centres: Float32Array;

  /**
   * @param fromFiles the job's axes to the world's; the file's own are minded here
   * @param request asked to draw when Spark has sorted anew
   */
  static async read(
    bytes: ArrayBuffer,
    file: SplatFile,
    fromFiles: Matrix4,
    renderer: WebGLRenderer,
    request: () => void,
  ): Promise<Splats> {
    // Whole floats for the centres: halves, as Spark packs them else, would show as steps from near.
    const mesh = new SplatMesh({ fileBytes: bytes, fileType: TYPES[file], extSplats: true });
    await mesh.initialized;
    // SPZ alone is written with OpenGL's axes, as its format demands.
    const flipped = file === "gaussians.spz";
    mesh.applyMatrix4(flipped ? fromFiles.clone().multiply(FLIP) : fromFiles);
    mesh.updateMatrixWorld();
    return new Splats(mesh, flipped, new SparkRenderer({ renderer, onDirty: request, enableLod: false }));
  }

  private constructor(
    private readonly mesh: SplatMesh,
    private readonly flipped: boolean,
    private readonly spark: SparkRenderer,
  ) {
    this.object.add(spark, mesh);
    this.total = mesh.numSplats;
    this.centres = new Float32Array(3 * this.total);
    const opacities = new Float32Array(this.total);
    mesh.forEachSplat((index, centre, _scales, _quaternion, opacity) => {
      centre.toArray(this.centres, 3 * index);
      opacities[index] = opacity;
    });
    // Until a point cloud tells how sure each is: the service makes opacities of the points' confidence, or has them
    // from the network. Among equals the file's order, the largest first, decides.
    const values = opacities.map((opacity, index) => opacity + (1e-3 * index) / this.total);
    const edges = quantiles(values);
    this.ranks = new Uint8Array(WIDTH * Math.ceil(this.total / WIDTH));
    for (let i = 0; i < this.total; i++) this.ranks[i] = rankOf(values[i]!, edges);
    this.texels = new DataTexture(this.ranks, WIDTH, this.ranks.length / WIDTH, RedFormat);
    this.texels.needsUpdate = true;
    mesh.objectModifier = this.leavingOut();
    mesh.updateGenerator();
  }

  get drawn(): number {
    return Math.round(this.total * (1 - this.least.value));
  }

  /** Whether they have been sorted, so that there is something to see. */
  get ready(): boolean {
    return this.spark.activeSplats > 0 || !this.total;
  }

  /** Spark sorts and draws all of them or none. */
  thin(): void {}

  leaveOut(share: number): void {
    this.least.value = share;
    this.mesh.updateVersion();
  }

  /** Have each as sure as the point at its place. */
  rankBy(sureness: Sureness): void {
    const sign = this.flipped ? -1 : 1;
    for (let i = 0; i < this.total; i++) {
      const rank = sureness.at(this.centres[3 * i]!, sign * this.centres[3 * i + 1]!, sign * this.centres[3 * i + 2]!);
      if (rank >= 0) this.ranks[i] = rank;
    }
    this.texels.needsUpdate = true;
    this.mesh.updateVersion();
  }

  sample(count: number): Float32Array {
    return sampled(this.centres, count, this.mesh.matrixWorld);
  }

  pick(ray: Ray, cone: number): Vector3 | null {
    const own = ray.clone().applyMatrix4(this.mesh.matrixWorld.clone().invert());
    const least = 256 * this.least.value;
    const found = firstHit(this.centres, own, cone, undefined, (index) => this.ranks[index]! + 0.5 >= least);
    return found < 0 ? null : new Vector3().fromArray(this.centres, 3 * found).applyMatrix4(this.mesh.matrixWorld);
  }

  dispose(): void {
    this.mesh.dispose();
    this.spark.dispose();
    this.spark.geometry.dispose();
    this.spark.material.dispose();
    this.texels.dispose();
  }

  /** Makes the least sure ones wholly transparent, on the GPU. */
  private leavingOut() {
    const { Gsplat } = dyno;
    return dyno.dynoBlock({ gsplat: Gsplat }, { gsplat: Gsplat }, ({ gsplat }) => {
      const step = dyno.dyno({
        inTypes: { gsplat: Gsplat, ranks: "sampler2D", least: "float" },
        outTypes: { gsplat: Gsplat },
        inputs: { gsplat, ranks: dyno.dynoSampler2D(this.texels), least: this.least },
        statements: ({ inputs, outputs }) => [
          `${outputs.gsplat} = ${inputs.gsplat};`,
          `ivec2 texel = ivec2(${inputs.gsplat}.index % ${WIDTH}, ${inputs.gsplat}.index / ${WIDTH});`,
          `float rank = texelFetch(${inputs.ranks}, texel, 0).r * 255.0 + 0.5;`,
          `if (rank < ${inputs.least} * 256.0) ${outputs.gsplat}.rgba.a = 0.0;`,
        ],
      });
      return { gsplat: step.outputs.gsplat };
    });
  }
}
