/** Small pictures of large photos. */

/** A 12-megapixel photo takes 50 MB while it is decoded: only so many at a time. */
const lanes: Promise<unknown>[] = [Promise.resolve(), Promise.resolve()];
let turn = 0;

/** The photo so many pixels wide, as a JPEG; null where this browser cannot read it. */
export function thumbnail(photo: Blob, width: number): Promise<Blob | null> {
  const lane = turn++ % lanes.length;
  const made = lanes[lane]!.then(() => shrink(photo, width)).catch(() => null);
  lanes[lane] = made;
  return made;
}

async function shrink(photo: Blob, width: number): Promise<Blob | null> {
  const bitmap = await createImageBitmap(photo, { resizeWidth: width, resizeQuality: "medium" });
  // Some browsers do not resize while they decode.
  const scale = Math.min(1, width / bitmap.width);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * bitmap.width));
  canvas.height = Math.max(1, Math.round(scale * bitmap.height));
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.8));
}

/** As an address that holds the picture itself, to be kept; empty where it cannot be read. */
export async function tiny(picture: Blob): Promise<string> {
  const small = await thumbnail(picture, 112);
  if (!small) return "";
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => resolve("");
    reader.readAsDataURL(small);
  });
}
