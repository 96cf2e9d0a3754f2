// Numbers as the terminal's views write them.

/** A number with so many digits behind its point. */
export function fixed(number, digits) {
  return number.toFixed(digits);
}

/** The same with its sign; no -0. */
export function signed(number, digits) {
  const text = (number + 0).toFixed(digits);
  return Number(text) === 0 ? `+${(0).toFixed(digits)}` : number > 0 ? `+${text}` : text;
}

/** A number of bytes: `512 bytes`, `1.5 KiB`. */
export function byteSize(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit++;
  }
  return unit === 0 ? `${bytes.toLocaleString("en")} bytes` : `${bytes.toFixed(1)} ${units[unit]}`;
}

/** 1234567 as 1,234,567. */
export function grouped(number) {
  return Math.round(number).toLocaleString("en");
}

/** A count with its noun: `1 layer`, `1,024 keys`. */
export function plural(count, one, many) {
  return `${grouped(count)} ${count === 1 ? one : many}`;
}
