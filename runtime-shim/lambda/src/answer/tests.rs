use super::*;
use http_body_util::BodyExt as _;
use proptest::prelude::*;

/// Status, content type and body.
async fn read(answer: &str) -> (u16, String, Vec<u8>) {
    let (response, _) = Answer::Whole(answer.to_owned().into()).response();
    let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
    let status = response.status().as_u16();
    (status, kind, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn an_answer_without_a_status_is_the_body() {
    for body in
        ["\"Hello, world!\"", "{ \"message\": \"hi\" }", "null", "[201, {}, []]", " {\"statusCode\":null}"]
    {
        assert_eq!(read(body).await, (200, "application/json".to_owned(), body.as_bytes().to_vec()));
    }
}

#[tokio::test]
async fn an_answer_with_a_status_says_the_rest() {
    let text =
        r#"{ "statusCode": 201, "headers": { "Content-Type": "text/plain", "X-N": 5 }, "body": "hi" }"#;
    assert_eq!(read(text).await, (201, "text/plain".to_owned(), b"hi".to_vec()));
    let encoded = r#"{ "statusCode": "404", "body": "AP8=", "isBase64Encoded": true }"#;
    assert_eq!(read(encoded).await, (404, "application/json".to_owned(), vec![0, 255]));
    assert_eq!(read(r#"{ "statusCode": 200, "body": { "a": 1 } }"#).await.2, b"{\"a\":1}");
    assert_eq!(read(r#"{ "statusCode": 204 }"#).await.2, b"");
}

#[tokio::test]
async fn an_answer_that_cannot_be_understood_is_a_bad_gateway_and_says_why() {
    for wrong in [
        "{",
        "",
        r#"{ "statusCode": 99 }"#,
        r#"{ "statusCode": 600 }"#,
        r#"{ "statusCode": 101 }"#,
        r#"{ "statusCode": [] }"#,
        r#"{ "statusCode": 200, "headers": { "a b": "c" } }"#,
        r#"{ "statusCode": 200, "headers": { "a": "c\r\nd: e" } }"#,
        r#"{ "statusCode": 200, "body": "!", "isBase64Encoded": true }"#,
    ] {
        let (response, problem) = Answer::Whole(wrong.to_owned().into()).response();
        assert_eq!(response.status(), 502, "{wrong}");
        assert!(problem.is_some(), "{wrong}");
    }
}

#[test]
fn cookies_are_headers_and_what_is_of_the_connection_is_left_out() {
    let object = json!({
        "statusCode": 200,
        "headers": { "connection": "upgrade", "content-length": "7", "Transfer-Encoding": "chunked", "vary": ["a", "b"] },
        "cookies": ["a=1; Secure", "b=2"],
    });
    let head = Head::read(object.as_object().unwrap(), JSON).unwrap();
    let all = |name: &str| head.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
    assert_eq!(all("set-cookie"), ["a=1; Secure", "b=2"]);
    assert_eq!(all("vary"), ["a", "b"]);
    assert_eq!(head.headers.len(), 5, "{head:?}");
}

proptest! {
    #[test]
    fn any_answer_is_a_response(text in "[{\\[]?(\"(statusCode|headers|body|cookies)\":[0-9a\"{}:]{0,9},?){0,4}[}\\]]?") {
        let (response, problem) = Answer::Whole(text.into()).response();
        prop_assert_eq!(problem.is_some(), response.status() == StatusCode::BAD_GATEWAY);
    }
}

#[test]
fn what_fails_has_a_status_and_words() {
    for (failure, status) in [(Failure::Error, 502), (Failure::Timeout, 504), (Failure::NotTaken, 503)] {
        assert_eq!(Answer::Failed(failure).response().0.status(), status);
    }
}
