// To come.
import { fill } from "../dom.js";

export function mountLens(root) {
  return () => fill(root, "");
}
