/** Binary PLY by its own header: whatever properties it has, in whatever order and type. */

export interface Vertices {
  count: number;
  /** One property of every `step`th vertex; undefined where the file has none of that name. */
  column(name: string, step: number): Float32Array | undefined;
}

type Reading = (view: DataView, byte: number) => number;

const TYPES: Record<string, [size: number, read: Reading]> = {
  int8: [1, (view, byte) => view.getInt8(byte)],
  uint8: [1, (view, byte) => view.getUint8(byte)],
  int16: [2, (view, byte) => view.getInt16(byte, true)],
  uint16: [2, (view, byte) => view.getUint16(byte, true)],
  int32: [4, (view, byte) => view.getInt32(byte, true)],
  uint32: [4, (view, byte) => view.getUint32(byte, true)],
  float32: [4, (view, byte) => view.getFloat32(byte, true)],
  float64: [8, (view, byte) => view.getFloat64(byte, true)],
};
/** The same by their older names. */
const NAMES: Record<string, string> = {
  char: "int8", uchar: "uint8", short: "int16", ushort: "uint16",
  int: "int32", uint: "uint32", float: "float32", double: "float64",
};

const LONGEST_HEADER = 65_536;

/** The vertices of a binary_little_endian PLY whose first element they are. Throws Error. */
export function readVertices(bytes: ArrayBuffer): Vertices {
  const text = new TextDecoder("latin1").decode(new Uint8Array(bytes, 0, Math.min(bytes.byteLength, LONGEST_HEADER)));
  const end = /end_header\r?\n/.exec(text);
  if (!text.startsWith("ply") || !end) throw new Error("This is no PLY file.");
  const lines = text.slice(0, end.index).split(/\r?\n/);
  if (!lines.includes("format binary_little_endian 1.0")) throw new Error("Only binary little-endian PLY is read.");

  const properties = new Map<string, { read: Reading; offset: number }>();
  let count = -1;
  let stride = 0;
  for (const line of lines) {
    const [word, type = "", name = ""] = line.split(" ");
    if (word === "element" && count >= 0) break;
    if (word === "element" && type === "vertex") count = Number(name);
    else if (word === "element") throw new Error("The vertices come first in a PLY file that is read here.");
    if (word !== "property") continue;
    const known = TYPES[NAMES[type] ?? type];
    if (!known) throw new Error(`A vertex of this PLY file has a property of type ${type}.`);
    properties.set(name, { read: known[1], offset: stride });
    stride += known[0];
  }
  const start = end.index + end[0].length;
  if (!(count >= 0) || bytes.byteLength < start + count * stride) throw new Error("This PLY file is cut short.");

  const view = new DataView(bytes);
  const column = (name: string, step: number) => {
    const property = properties.get(name);
    if (!property) return undefined;
    const { read, offset } = property;
    const values = new Float32Array(Math.floor(count / step));
    let byte = start + offset;
    for (let i = 0; i < values.length; i++) {
      values[i] = read(view, byte);
      byte += step * stride;
    }
    return values;
  };
  return { count, column };
}
