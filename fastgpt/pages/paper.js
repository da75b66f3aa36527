// Paper is white: while a page is printed it has the light colours, whatever the screen's are. Scripts that draw by colours
// of the style draw again at beforeprint, after this one, and at afterprint.
window.addEventListener("beforeprint", () => document.documentElement.classList.add("printing"));
window.addEventListener("afterprint", () => document.documentElement.classList.remove("printing"));
