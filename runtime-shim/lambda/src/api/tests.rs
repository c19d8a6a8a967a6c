use super::*;

#[test]
fn an_error_is_shown_in_one_bounded_line() {
    let mut headers = HeaderMap::new();
    headers.insert(ERROR_TYPE, HeaderValue::from_static("Runtime.Broken"));
    let line = shown(&headers, br#"{"errorType":"ValueError","errorMessage":"a\nb","stackTrace":[]}"#);
    assert_eq!(line, "ValueError: a b");
    assert_eq!(shown(&headers, b"no json"), "Runtime.Broken");
    assert_eq!(shown(&HeaderMap::new(), b"[]"), "an error without a type");
    let long = format!("{{\"errorMessage\":\"{}\"}}", "x".repeat(5000));
    assert_eq!(shown(&headers, long.as_bytes()).len(), SHOWN_MAX);
}

#[test]
fn names_have_the_form_that_clients_take_apart() {
    assert_eq!(arn("shop").split(':').count(), 7);
}
