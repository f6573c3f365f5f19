//! The live page: three files, part of the program, that need nothing from anywhere else.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

const HTML: &str = include_str!("index.html");
const STYLE: &str = include_str!("page.css");
const SCRIPTS: [(&str, &str); 3] = [
    ("/page.js", include_str!("page.js")),
    ("/layout.js", include_str!("layout.js")),
    ("/stream.js", include_str!("stream.js")),
];

/// Adds the page to other routes.
pub(super) fn routes(router: Router) -> Router {
    let router = router
        .route("/", get(|| async { file("text/html; charset=utf-8", HTML) }))
        .route("/page.css", get(|| async { file("text/css; charset=utf-8", STYLE) }));
    SCRIPTS.into_iter().fold(router, |router, (path, text)| {
        router.route(path, get(move || async move { file("text/javascript; charset=utf-8", text) }))
    })
}

fn file(media_type: &'static str, text: &'static str) -> impl IntoResponse {
    // A page that is older than the controller would not understand it.
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-cache")], text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a page that needs the network, builds markup out of text that somebody else chose, or carries code that its own policy bars.
    #[test]
    fn the_page_is_self_contained_and_escapes() {
        for (name, text) in SCRIPTS.into_iter().chain([("index.html", HTML), ("page.css", STYLE)]) {
            let namespace = "http://www.w3.org/2000/svg";
            let text = text.replace(namespace, "");
            for foreign in ["http://", "https://", "//cdn", "@import", "url("] {
                assert!(!text.contains(foreign), "{name} uses {foreign}");
            }
            for unsafe_way in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
            {
                assert!(!text.contains(unsafe_way), "{name} uses {unsafe_way}");
            }
        }
        for inline in [" style=\"", " onclick=", "<script>", "<style>"] {
            assert!(!HTML.contains(inline), "index.html has {inline}, which the policy bars");
        }
    }
}
