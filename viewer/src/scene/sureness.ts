/** How sure a Gaussian is: its file does not tell, but the point cloud has the same places, and their confidence. */

/** Cells along half of an axis: far finer than points lie, and far coarser than file formats round. */
const CELLS = 2 ** 15;

/** Ranks of places, found again by where they are. */
export class Sureness {
  private readonly cell: number;
  private readonly mask: number;
  /** A number for each place, unequal for nearly all that are unequal, and 0 where the table is free. */
  private readonly marks: Uint32Array;
  private readonly ranks: Uint8Array;

  /** @param positions x y z after one another, with a rank for each */
  constructor(positions: Float32Array, ranks: Uint8Array) {
    let extent = 0;
    for (let i = 0; i < positions.length; i++) extent = Math.max(extent, Math.abs(positions[i]!));
    this.cell = extent / CELLS || 1;
    const slots = 2 ** Math.ceil(Math.log2(2 * ranks.length + 1));
    this.mask = slots - 1;
    this.marks = new Uint32Array(slots);
    this.ranks = new Uint8Array(slots);
    for (let i = 0; i < ranks.length; i++) {
      const mark = this.mark(positions[3 * i]!, positions[3 * i + 1]!, positions[3 * i + 2]!);
      const slot = this.slot(mark);
      this.marks[slot] = mark;
      this.ranks[slot] = ranks[i]!;
    }
  }

  /** The rank of the point there, or -1. */
  at(x: number, y: number, z: number): number {
    const mark = this.mark(x, y, z);
    const slot = this.slot(mark);
    return this.marks[slot] === mark ? this.ranks[slot]! : -1;
  }

  private mark(x: number, y: number, z: number): number {
    let mark = 0;
    for (const value of [x, y, z]) {
      mark = Math.imul(mark ^ Math.round(value / this.cell), 0x9e3779b1);
      mark ^= mark >>> 15;
    }
    return mark >>> 0 || 1;
  }

  /** Where this mark is, or the free slot that it would take. */
  private slot(mark: number): number {
    let slot = mark & this.mask;
    while (this.marks[slot] !== 0 && this.marks[slot] !== mark) slot = (slot + 1) & this.mask;
    return slot;
  }
}
