/** Binary PLY by its own header: whatever properties it has, in whatever order and type. */

/** Reads one property of the vertex that begins at a byte. */
export type Reader = (byte: number) => number;

export interface Vertices {
  count: number;
  /** Bytes a vertex, and where the first begins. */
  stride: number;
  start: number;
  /** Undefined where the file has no such property. */
  reader(name: string): Reader | undefined;
}

const SIZES: Record<string, number> = {
  char: 1, int8: 1, uchar: 1, uint8: 1, short: 2, int16: 2, ushort: 2, uint16: 2,
  int: 4, int32: 4, uint: 4, uint32: 4, float: 4, float32: 4, double: 8, float64: 8,
}; // prettier-ignore

const LONGEST_HEADER = 65_536;

/** The vertices of a binary_little_endian PLY whose first element they are. Throws Error. */
export function readVertices(bytes: ArrayBuffer): Vertices {
  const text = new TextDecoder("latin1").decode(new Uint8Array(bytes, 0, Math.min(bytes.byteLength, LONGEST_HEADER)));
  const end = /end_header\r?\n/.exec(text);
  if (!text.startsWith("ply") || !end) throw new Error("This is no PLY file.");
  const lines = text.slice(0, end.index).split(/\r?\n/);
  if (!lines.includes("format binary_little_endian 1.0")) throw new Error("Only binary little-endian PLY is read.");

  const properties = new Map<string, { type: string; offset: number }>();
  let count = -1;
  let stride = 0;
  for (const line of lines) {
    const [word, type = "", name = ""] = line.split(" ");
    if (word === "element" && count >= 0) break;
    if (word === "element" && type === "vertex") count = Number(name);
    else if (word === "element") throw new Error("The vertices come first in a PLY file that is read here.");
    if (word !== "property") continue;
    const size = SIZES[type];
    if (!size) throw new Error(`A vertex of this PLY file has a property of type ${type}.`);
    properties.set(name, { type, offset: stride });
    stride += size;
  }
  const start = end.index + end[0].length;
  if (!(count >= 0) || bytes.byteLength < start + count * stride) throw new Error("This PLY file is cut short.");

  const view = new DataView(bytes);
  const reader = (name: string) => {
    const property = properties.get(name);
    return property && readerOf(view, property.type, property.offset);
  };
  return { count, stride, start, reader };
}

function readerOf(view: DataView, type: string, offset: number): Reader {
  switch (type) {
    case "char": case "int8": return (byte) => view.getInt8(byte + offset);
    case "uchar": case "uint8": return (byte) => view.getUint8(byte + offset);
    case "short": case "int16": return (byte) => view.getInt16(byte + offset, true);
    case "ushort": case "uint16": return (byte) => view.getUint16(byte + offset, true);
    case "int": case "int32": return (byte) => view.getInt32(byte + offset, true);
    case "uint": case "uint32": return (byte) => view.getUint32(byte + offset, true);
    case "double": case "float64": return (byte) => view.getFloat64(byte + offset, true);
    default: return (byte) => view.getFloat32(byte + offset, true);
  } // prettier-ignore
}
