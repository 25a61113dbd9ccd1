// The theme that was chosen before, applied before anything is drawn.
try {
  const theme = localStorage.getItem("seqrec-theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is turned off: the system's theme is used.
}
