/** The scene as a textured mesh, from mesh.glb. */

import { type BufferAttribute, type Group, Mesh, MeshBasicMaterial, type Ray, Raycaster, Vector3 } from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

import type { Layer } from "./layer";

export class TexturedMesh implements Layer {
  readonly total: number = 0;

  private readonly meshes: Mesh[] = [];

  /** Throws what the loader throws. mesh.glb has the world's axes already. */
  static async read(bytes: ArrayBuffer): Promise<TexturedMesh> {
    const { scene } = await new GLTFLoader().parseAsync(bytes, "");
    return new TexturedMesh(scene);
  }

  private constructor(readonly object: Group) {
    object.updateMatrixWorld(true);
    object.traverse((part) => {
      // Cameras' lines, if there are any, are drawn with the photos.
      if (part instanceof Mesh) this.meshes.push(part);
      else part.visible = !("isLine" in part || "isPoints" in part);
    });
    for (const mesh of this.meshes) mesh.material = unlit(mesh.material);
    for (const { geometry } of this.meshes) this.total += (geometry.index ?? geometry.attributes.position!).count / 3;
  }

  get drawn(): number {
    return this.total;
  }

  /** Triangles have no even subset. */
  thin(): void {}

  /** A mesh is one piece: it was made of what is sure. */
  leaveOut(): void {}

  sample(count: number): Float32Array {
    const points: number[] = [];
    const total = this.meshes.reduce((sum, { geometry }) => sum + geometry.attributes.position!.count, 0);
    const step = Math.max(1, Math.floor(total / count));
    const at = new Vector3();
    for (const mesh of this.meshes) {
      const positions = mesh.geometry.attributes.position as BufferAttribute;
      for (let i = 0; i < positions.count; i += step) {
        points.push(...at.fromBufferAttribute(positions, i).applyMatrix4(mesh.matrixWorld).toArray());
      }
    }
    return new Float32Array(points);
  }

  pick(ray: Ray): Vector3 | null {
    const [hit] = new Raycaster(ray.origin, ray.direction).intersectObjects(this.meshes, false);
    return hit?.point ?? null;
  }

  dispose(): void {
    for (const { geometry, material } of this.meshes) {
      geometry.dispose();
      for (const one of [material].flat() as MeshBasicMaterial[]) {
        one.map?.dispose();
        if (one.map?.image instanceof ImageBitmap) one.map.image.close();
        one.dispose();
      }
    }
  }
}

/** The photos' light is in the texture already. */
function unlit(material: Mesh["material"]): MeshBasicMaterial[] | MeshBasicMaterial {
  const one = (from: MeshBasicMaterial) => {
    const { map, color, vertexColors, side, transparent, opacity, alphaTest } = from;
    from.dispose();
    return new MeshBasicMaterial({ map, color, vertexColors, side, transparent, opacity, alphaTest });
  };
  return Array.isArray(material)
    ? (material as MeshBasicMaterial[]).map(one)
    : one(material as MeshBasicMaterial);
}
