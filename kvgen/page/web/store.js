// The state of the page: one plain object, replaced as a whole, and who wants to hear of it.

/** A store: get(), set(changes), subscribe(listener(state, before)). */
export function createStore(initial) {
  let state = Object.freeze({ ...initial });
  const listeners = [];
  return {
    get: () => state,
    set(changes) {
      const before = state;
      if (Object.entries(changes).every(([name, value]) => Object.is(before[name], value))) return;
      state = Object.freeze({ ...before, ...changes });
      for (const listener of listeners) listener(state, before);
    },
    subscribe(listener) {
      listeners.push(listener);
    },
  };
}
