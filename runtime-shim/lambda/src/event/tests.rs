use super::*;
use axum::http::Request;
use base64::Engine as _;
use proptest::prelude::*;

fn event(request: axum::http::request::Builder, body: &[u8]) -> Value {
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let event = of(&parts, &Bytes::copy_from_slice(body), [192, 0, 2, 7].into(), "shop");
    serde_json::from_slice(&event.body).unwrap()
}

#[test]
fn a_request_becomes_an_event_of_payload_2() {
    let request = Request::post("/my/pa%20th?a=1&a=2&b=x%20y+z&c&%zz=%4")
        .header("host", "shop.example:8081")
        .header("Accept", "a/b")
        .header("accept", "c/d")
        .header("cookie", "one=1; two=2")
        .header("cookie", "three=3")
        .header("user-agent", "curl")
        .header("content-type", "application/json");
    let event = event(request, br#"{"k":1}"#);
    assert_eq!(event["version"], "2.0");
    assert_eq!(event["rawPath"], "/my/pa%20th");
    assert_eq!(event["rawQueryString"], "a=1&a=2&b=x%20y+z&c&%zz=%4");
    assert_eq!(event["queryStringParameters"], json!({ "a": "1,2", "b": "x y z", "c": "", "%zz": "%4" }));
    assert_eq!(event["cookies"], json!(["one=1", "two=2", "three=3"]));
    assert_eq!(event["headers"]["accept"], "a/b,c/d");
    assert_eq!(event["headers"]["x-forwarded-for"], "192.0.2.7");
    assert!(event["headers"].get("cookie").is_none());
    assert_eq!((&event["body"], &event["isBase64Encoded"]), (&json!(r#"{"k":1}"#), &json!(false)));
    let context = &event["requestContext"];
    assert_eq!(context["http"]["method"], "POST");
    assert_eq!(context["http"]["sourceIp"], "192.0.2.7");
    assert_eq!(context["http"]["userAgent"], "curl");
    assert_eq!(
        (&context["domainName"], &context["domainPrefix"]),
        (&json!("shop.example:8081"), &json!("shop"))
    );
    assert_eq!(context["requestId"].as_str().unwrap().len(), 36);
}

#[test]
fn a_request_with_nothing_has_nothing() {
    let request =
        Request::get("/").header("x-forwarded-for", "203.0.113.5").header("content-type", "image/png");
    let event = event(request, b"");
    for key in ["cookies", "queryStringParameters", "body"] {
        assert!(event.get(key).is_none(), "{key}");
    }
    assert_eq!(event["headers"]["x-forwarded-for"], "203.0.113.5, 192.0.2.7");
    assert!(event["requestContext"]["http"]["userAgent"].is_null());
    assert_eq!(event["isBase64Encoded"], false);
}

#[test]
fn bodies_that_are_no_text_are_base64() {
    for (kind, body, encoded) in [
        (Some("text/html; charset=utf-8"), "ä".as_bytes(), false),
        (Some("application/ld+json"), b"{}", false),
        (None, b"plain", false),
        (None, b"\xff", true),
        (Some("text/plain"), b"\xff", true),
        (Some("application/octet-stream"), b"plain", true),
        (Some("application/x-www-form-urlencoded"), b"a=1", true),
    ] {
        let mut request = Request::post("/");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let event = event(request, body);
        assert_eq!(event["isBase64Encoded"], encoded, "{kind:?}");
        let sent = event["body"].as_str().unwrap();
        let sent = if encoded { STANDARD.decode(sent).unwrap() } else { sent.as_bytes().to_vec() };
        assert_eq!(sent, body, "{kind:?}");
    }
}

#[test]
fn times_are_those_of_a_log() {
    for (seconds, expected) in [
        (0, "01/Jan/1970:00:00:00 +0000"),
        (951_782_400, "29/Feb/2000:00:00:00 +0000"),
        (1_583_348_638, "04/Mar/2020:19:03:58 +0000"),
        (1_798_761_599, "31/Dec/2026:23:59:59 +0000"),
        (4_107_542_400, "01/Mar/2100:00:00:00 +0000"),
    ] {
        assert_eq!(common_log_time(seconds), expected);
    }
}

#[test]
fn numbers_of_invocations_are_uuids() {
    assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
    assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert_ne!(random(), random());
}

proptest! {
    #[test]
    fn any_query_and_any_body_make_an_event(query in "[ -~&&[^#<>\"`\\\\^{|} ]]{0,60}", body: Vec<u8>, kind in "(text|image)/[a-z]{1,9}") {
        let request = Request::post(format!("/?{query}")).header("content-type", kind);
        let event = event(request, &body);
        prop_assert_eq!(&event["rawQueryString"], &json!(query));
        let sent = event["body"].as_str().unwrap_or_default();
        let sent = if event["isBase64Encoded"] == true { STANDARD.decode(sent).unwrap() } else { sent.as_bytes().to_vec() };
        prop_assert_eq!(sent, body);
    }
}
