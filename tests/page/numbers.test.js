import assert from "node:assert/strict";
import test from "node:test";
import { byteSize, fixed, grouped, plural, signed } from "../../kvgen/page/web/pure/numbers.js";
import { shortened } from "../../kvgen/page/web/pure/text.js";

test("numbers have so many digits, signed ones a sign", () => {
  assert.equal(fixed(1.005, 1), "1.0");
  assert.deepEqual(
    [1.25, -1.25, 0, -0, -0.0001].map((number) => signed(number, 2)),
    ["+1.25", "-1.25", "+0.00", "+0.00", "+0.00"],
  );
});

test("sizes go up by 1024", () => {
  assert.deepEqual([0, 1023, 1024, 1536, 3 * 2 ** 20, 5 * 2 ** 40].map(byteSize), [
    "0 bytes",
    "1,023 bytes",
    "1.0 KiB",
    "1.5 KiB",
    "3.0 MiB",
    "5120.0 GiB",
  ]);
});

test("thousands are grouped", () => {
  assert.deepEqual([0, 999, 1234567].map(grouped), ["0", "999", "1,234,567"]);
});

test("a count agrees with its noun", () => {
  assert.deepEqual(
    [0, 1, 1024].map((count) => plural(count, "key", "keys")),
    ["0 keys", "1 key", "1,024 keys"],
  );
});

test("a shortened text has at most so many characters, whatever they are", () => {
  assert.equal(shortened("word", 4), "word");
  assert.equal(shortened("words", 4), "wor…");
  assert.equal(shortened("🐈🐈🐈", 2), "🐈…");
  assert.equal(shortened("word", 0), "…");
});
