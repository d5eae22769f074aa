//! The client against a server of a few lines on a free port.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use reflect_text::Message;

use super::super::Sampling;
use super::*;

/// A request as the server saw it: its head and its body.
type Seen = (String, Value);

/// Answers one connection with each reply, in order; what was asked comes back from the thread.
fn serve(replies: Vec<String>) -> (String, JoinHandle<Vec<Seen>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let answer = |reply: String| {
            let (stream, _) = listener.accept().unwrap();
            answer_one(stream, &reply)
        };
        replies.into_iter().map(answer).collect()
    });
    (url, server)
}

fn answer_one(mut stream: TcpStream, reply: &str) -> Seen {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0);
    }
    let length =
        head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(reply.as_bytes()).unwrap();
    (head, serde_json::from_slice(&body).unwrap_or_default())
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}")
}

fn choices(texts: &[&str]) -> String {
    let choices: Vec<Value> =
        texts.iter().map(|text| json!({"message": {"role": "assistant", "content": text}})).collect();
    reply("200 OK", "", &json!({ "choices": choices }).to_string())
}

fn client(url: &str) -> OpenAi {
    let settings = OpenAiSettings {
        timeout: Duration::from_secs(5),
        retries: 2,
        backoff: Duration::from_millis(1),
        parallel: 1,
        ..OpenAiSettings::new(url, "tiny")
    };
    OpenAi::with_key(settings, Some("secret-key".to_owned())).unwrap()
}

fn request(samples: usize) -> CompletionRequest {
    let sampling = Sampling { stop: vec!["END".to_owned()], ..Sampling::default() };
    CompletionRequest {
        messages: vec![Message::new("user", "2+2?")],
        tools: None,
        samples,
        sampling,
        seed: 7,
    }
}

#[test]
fn a_request_says_everything() {
    let (url, server) = serve(vec![choices(&["4", "5"])]);
    let texts = client(&url).complete(&[request(2)]).unwrap();
    assert_eq!(texts, [["4", "5"]]);
    let (head, body) = server.join().unwrap().remove(0);
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1"));
    assert!(head.to_lowercase().contains("authorization: bearer secret-key"));
    let expected = json!([{"role": "user", "content": "2+2?"}]);
    assert_eq!((&body["messages"], &body["model"]), (&expected, &json!("tiny")));
    assert_eq!((&body["n"], &body["seed"], &body["stop"]), (&json!(2), &json!(7), &json!(["END"])));
    assert_eq!(body["max_tokens"], json!(1024));
}

#[test]
fn missing_samples_are_asked_for_again() {
    let (url, server) = serve(vec![choices(&["a"]), choices(&["b", "c"])]);
    assert_eq!(client(&url).complete(&[request(3)]).unwrap(), [["a", "b", "c"]]);
    let seen = server.join().unwrap();
    assert_eq!((&seen[1].1["n"], &seen[1].1["seed"]), (&json!(2), &json!(8)));
}

#[test]
fn busy_and_broken_servers_are_asked_again() {
    let busy = reply("429 Too Many Requests", "retry-after: 0\r\n", "{}");
    let broken = reply("503 Service Unavailable", "", "");
    let (url, server) = serve(vec![busy, broken, choices(&["4"])]);
    assert_eq!(client(&url).complete(&[request(1)]).unwrap(), [["4"]]);
    assert_eq!(server.join().unwrap().len(), 3);
}

#[test]
fn attempts_end() {
    let broken = reply("500 Internal Server Error", "", "oh\n\nno");
    let (url, server) = serve(vec![broken; 3]);
    let error = client(&url).complete(&[request(1)]).unwrap_err();
    server.join().unwrap();
    assert!(
        matches!(&error, CompletionError::Refused { status: 500, reason, .. } if reason == "oh no"),
        "{error}"
    );
}

#[test]
fn refusals_are_told_at_once_and_without_the_key() {
    let refusal = reply("401 Unauthorized", "", r#"{"error": {"message": "Bad key."}}"#);
    let (url, server) = serve(vec![refusal]);
    let error = client(&url).complete(&[request(1)]).unwrap_err();
    assert_eq!(server.join().unwrap().len(), 1);
    let sentence = error.to_string();
    assert!(sentence.contains("401 (Bad key.)") && !sentence.contains("secret-key"), "{sentence}");
    assert_eq!(sentence.lines().count(), 1);
}

#[test]
fn answers_that_are_none_are_named() {
    for body in ["<html>", r#"{"choices": []}"#, r#"{"object": "list"}"#] {
        let (url, server) = serve(vec![reply("200 OK", "", body)]);
        let error = client(&url).complete(&[request(1)]).unwrap_err();
        server.join().unwrap();
        assert!(matches!(error, CompletionError::Malformed { .. }), "{error}");
    }
}

#[test]
fn calls_become_text() {
    let call = json!({"function": {"name": "add", "arguments": "{\"a\": 1}"}});
    let body = json!({"choices": [{"message": {"content": null, "tool_calls": [call]}}]});
    let (url, server) = serve(vec![reply("200 OK", "", &body.to_string())]);
    let texts = client(&url).complete(&[request(1)]).unwrap();
    server.join().unwrap();
    assert_eq!(texts[0][0], r#"{"name":"add","parameters":{"a":1}}"#);
}

#[test]
fn nobody_there_is_one_sentence() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let error = client(&url).complete(&[request(1)]).unwrap_err();
    assert!(matches!(error, CompletionError::Unreachable { attempts: 3, .. }), "{error}");
    assert!(OpenAi::new(OpenAiSettings::new("localhost:8000", "tiny")).is_err());
}

#[test]
fn many_requests_keep_their_order() {
    // One thread of the client: the server's replies meet the requests in order.
    let (url, server) = serve(vec![choices(&["a"]), choices(&["b"]), choices(&["c"])]);
    let texts = client(&url).complete(&[request(1), request(1), request(1)]).unwrap();
    server.join().unwrap();
    assert_eq!(texts, [["a"], ["b"], ["c"]]);
    assert!(client(&url).complete(&[]).unwrap().is_empty());
}
