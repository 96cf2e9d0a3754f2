// To come.
import { fill } from "../dom.js";

export function mountArcs(root) {
  return () => fill(root, "");
}
