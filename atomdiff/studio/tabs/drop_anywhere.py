"""Concepts that are dropped or pasted anywhere on the page: the script that catches them."""

# Whatever is dropped or pasted where nothing else takes it goes to hidden fields of the page, whichever tab
# is open.
DROP_ANYWHERE = """
const hand = (files) => {
  const field = document.querySelector('#catch-files input[type=file]'), held = new DataTransfer();
  if (!field || !files.length) return false;
  [...files].forEach((file) => held.items.add(file));
  field.files = held.files;
  field.dispatchEvent(new Event('change', { bubbles: true }));
  return true;
};
const isConcept = (text) => /^[\\s>`"'*]*atomdiff:v/i.test(text);
document.addEventListener('paste', (event) => {
  const text = event.clipboardData?.getData('text') ?? '', files = [...(event.clipboardData?.files ?? [])];
  const typing = event.target.closest?.('input, textarea, [contenteditable]');
  const box = document.querySelector('#catch-text textarea, #catch-text input');
  if (event.target.closest?.('#add-text')) return;
  if (isConcept(text) && box) {
    event.preventDefault(); event.stopPropagation();
    box.value = text;
    box.dispatchEvent(new Event('input', { bubbles: true }));
    setTimeout(() => document.querySelector('#catch-go')?.click(), 100);
  } else if (files.length && !typing && hand(files)) event.preventDefault();
}, true);
const loose = (event) => event.dataTransfer?.types.includes('Files') && !event.target.closest?.('.drop');
document.addEventListener('dragover', (event) => { if (loose(event)) event.preventDefault(); });
document.addEventListener('drop', (event) => {
  if (loose(event) && !event.defaultPrevented) { event.preventDefault(); hand(event.dataTransfer.files); }
});
"""
