// Texts that must fit.

/** A text of at most so many characters; a longer one ends with an ellipsis. */
export function shortened(text, most) {
  const characters = [...text];
  return characters.length <= most ? text : `${characters.slice(0, Math.max(0, most - 1)).join("")}…`;
}
