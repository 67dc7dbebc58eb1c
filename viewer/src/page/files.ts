/** What people drop or choose: photos, one archive, one video, folders of them, and other things. */

export type Kind = "photo" | "archive" | "video";

const ENDINGS: [Kind, RegExp][] = [
  ["photo", /\.(jpe?g|jpe|png|webp|hei[cf]|avif|tiff?|bmp)$/i],
  ["archive", /\.zip$/i],
  ["video", /\.(mp4|m4v|mov|webm|mkv)$/i],
];
const TYPES: [Kind, RegExp][] = [
  ["photo", /^image\/(jpeg|png|webp|hei[cf]|avif|tiff|bmp)$/],
  ["archive", /^application\/(x-)?zip(-compressed)?$/],
  ["video", /^video\//],
];
const natural = new Intl.Collator(undefined, { numeric: true });

/** What a file is, by its name or else its type; null: nothing that makes a scene. */
export function kindOf(file: File): Kind | null {
  const found = ENDINGS.find(([, ending]) => ending.test(file.name)) ?? TYPES.find(([, type]) => type.test(file.type));
  return found?.[0] ?? null;
}

/** In the order of their names, as people count: 2.jpg before 10.jpg. */
export function sorted(files: Iterable<File>): File[] {
  return [...files].sort((one, other) => natural.compare(one.name, other.name));
}

/** The files of a drop, those in its folders too, but for hidden ones. */
export async function dropped(transfer: DataTransfer): Promise<File[]> {
  // Once this function has waited for anything the browser empties the transfer.
  const found = [...transfer.items].map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
  const files = await Promise.all(found.map((one) => (one instanceof File ? [one] : one ? filesOf(one) : [])));
  return files.flat();
}

async function filesOf(entry: FileSystemEntry): Promise<File[]> {
  if (entry.name.startsWith(".") || entry.name === "__MACOSX") return [];
  if (isFile(entry)) return [await new Promise<File>((resolve, reject) => entry.file(resolve, reject))];
  if (!isFolder(entry)) return [];
  const reader = entry.createReader();
  const files: File[] = [];
  // A folder is told in parts, until one is empty.
  while (true) {
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return files;
    for (const inner of entries) files.push(...(await filesOf(inner)));
  }
}

function isFile(entry: FileSystemEntry): entry is FileSystemFileEntry {
  return entry.isFile;
}

function isFolder(entry: FileSystemEntry): entry is FileSystemDirectoryEntry {
  return entry.isDirectory;
}

const LOOK = 1 << 18;

/** Whether two files hold the same photo: equally long, and alike where they begin and end. */
export async function same(one: File, other: File): Promise<boolean> {
  if (one.size !== other.size) return false;
  for (const [start, end] of [[0, LOOK], [-LOOK, one.size]] as const) {
    const [first, second] = await Promise.all([one, other].map((file) => file.slice(start, end).arrayBuffer()));
    const bytes = new Uint8Array(second!);
    if (!new Uint8Array(first!).every((byte, index) => byte === bytes[index])) return false;
  }
  return true;
}

/** A name that comes back from the service as it is: on one line, not long, and unlike those that are taken. */
export function plainName(name: string, taken: ReadonlySet<string>): string {
  const clean = name.normalize("NFC").replace(/[\p{C}"\\/]/gu, "").replace(/\s/gu, " ").trim() || "photo";
  const dot = clean.lastIndexOf(".");
  const ending = dot > 0 && clean.length - dot < 10 ? clean.slice(dot) : "";
  const stem = clean.slice(0, clean.length - ending.length).slice(0, 80);
  let unique = stem + ending;
  for (let copy = 2; taken.has(unique); copy++) unique = `${stem} (${copy})${ending}`;
  return unique;
}
