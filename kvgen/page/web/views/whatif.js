// To come.
import { fill } from "../dom.js";

export function mountWhatIf(root) {
  return () => fill(root, "");
}
