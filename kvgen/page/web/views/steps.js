// To come.
export function mountSteps() {
  return () => {};
}
