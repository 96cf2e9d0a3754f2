// To come.
import { fill } from "../dom.js";

export function mountRow(root) {
  return () => fill(root, "");
}
