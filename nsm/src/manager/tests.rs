//! Connections through a whole mesh, as a client sees them.

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::monitor::Follower;
use crate::proto::connection::{Connection, State};
use crate::proto::networkservice::NetworkServiceRequest;
use crate::service::{INODE_URL, NextHop};
use crate::test_mesh::{DEADLINE, Manner, Mesh, first, mechanism, way};

#[tokio::test]
async fn a_connection_goes_through_the_whole_mesh_and_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let client = mesh.client().await;
    // That the answer is taken at all says that every token of its path is for the next process.
    let answer = mesh.ask(&client, first("a")).await.unwrap();
    let names: Vec<_> = way(&answer).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["nsc", "nsmgr", "fwd", "nse"]);
    let addresses = |answer: &Connection| answer.context.clone().unwrap().ip_context.unwrap().src_ip_addrs;
    assert_eq!(addresses(&answer), ["10.0.0.1/32"]);
    let again = mesh.ask(&client, answer.clone()).await.unwrap();
    assert_eq!((way(&again), addresses(&again)), (way(&answer), addresses(&answer)), "a refresh changes nothing");
    assert!(mesh.ask(&client, first("b")).await.is_err(), "no address is left");
    mesh.close(&client, again).await;
    assert_eq!(addresses(&mesh.ask(&client, first("b")).await.unwrap()), ["10.0.0.1/32"]);
}

#[tokio::test]
async fn the_next_forwarder_is_taken_when_one_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    let client = mesh.client().await;
    let none = mesh.ask(&client, first("a")).await.unwrap_err();
    assert!(none.message().starts_with("no candidates found"), "{none}");
    mesh.forwarder("a-fwd", Manner::Refuses).await;
    mesh.forwarder("b-fwd", Manner::Refuses).await;
    let refused = mesh.ask(&client, first("a")).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "1. An error during select forwarder b-fwd --> no token ID provided: \
         0. An error during select forwarder a-fwd --> no token ID provided: all forwarders have failed"
    );
    mesh.forwarder("c-fwd", Manner::Honest).await;
    let answer = mesh.ask(&client, first("a")).await.unwrap();
    assert_eq!(way(&answer)[2].0, "c-fwd");
    let unknown = Connection { network_service: "dns".to_owned(), ..first("x") };
    assert_eq!(mesh.ask(&client, unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_stranger_is_no_forwarder_and_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    // Its name is the first one.
    let registry = mesh.serve_forwarder("0", "nsmgr", Manner::Honest).await;
    let refused = mesh.register_forwarder("0", &registry).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().starts_with("spiffe://example.org/0 is none of those"), "{refused}");
    let client = mesh.client().await;
    assert!(mesh.ask(&client, first("a")).await.unwrap_err().message().starts_with("no candidates found"));
    mesh.forwarder("fwd", Manner::Honest).await;
    assert_eq!(way(&mesh.ask(&client, first("b")).await.unwrap())[2].0, "fwd");
}

#[tokio::test]
async fn a_client_learns_that_its_forwarder_is_gone_and_heals_when_it_is_back_or_with_another() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let client = mesh.client().await;
    let mut answer = mesh.ask(&client, first("a")).await.unwrap();
    for successor in ["fwd", "other"] {
        let (sender, mut told) = mpsc::unbounded_channel();
        let calls = client.connection().calls();
        let following =
            tokio::spawn(Follower::new(answer.clone()).follow(calls, move |changed| drop(sender.send(changed))));
        mesh.kill("fwd").await;
        let down = timeout(DEADLINE, async { while told.recv().await.expect("more").state() != State::Down {} });
        down.await.expect("it is told");
        following.abort();
        mesh.forwarder(successor, Manner::Honest).await;
        answer = timeout(DEADLINE, mesh.ask(&client, answer)).await.expect("an answer").unwrap();
        assert_eq!(way(&answer)[2].0, successor);
    }
    mesh.close(&client, answer).await;
}

#[tokio::test]
async fn connections_go_on_when_one_process_after_the_other_gets_a_new_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let mut answer = mesh.ask(&mesh.client().await, first("a")).await.unwrap();
    for name in ["fwd", "nse", "nsmgr"] {
        mesh.rotate(name);
        // The client connects anew: what it checks is the certificate of its manager.
        let again = mesh.ask(&mesh.client().await, answer.clone()).await.unwrap();
        assert_eq!(way(&again), way(&answer), "{name}");
        answer = again;
    }
}

#[tokio::test]
async fn what_a_forwarder_has_made_is_closed_when_its_answer_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("a-liar", Manner::Lies).await;
    let client = mesh.client().await;
    let refused = mesh.ask(&client, first("a")).await.unwrap_err();
    assert!(refused.message().contains("the token of path segment 3"), "{refused}");
    mesh.forwarder("fwd", Manner::Honest).await;
    // There are two addresses, and the liar has given them back.
    assert_eq!(way(&mesh.ask(&client, first("b")).await.unwrap())[2].0, "fwd");
}

#[tokio::test]
async fn a_close_through_a_manager_that_was_replaced_reaches_the_forwarder_as_soon_as_that_is_registered_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let answer = mesh.ask(&mesh.client().await, first("a")).await.unwrap();
    mesh.replace_manager().await;
    let (client, registry) = (mesh.client().await, mesh.registry_at("fwd", "nsmgr", DEADLINE));
    let ((), registered) = tokio::join!(mesh.close(&client, answer), mesh.register_forwarder("fwd", &registry));
    registered.unwrap();
    // There are two addresses, and they were given back.
    mesh.ask(&client, first("b")).await.unwrap();
}

#[tokio::test]
async fn a_new_choice_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let client = mesh.client().await;
    let answer = mesh.ask(&client, first("a")).await.unwrap();
    let mut again = Connection { mechanism: None, ..answer.clone() };
    again.set_state(State::ReselectRequested);
    // There are two addresses: what was there is closed first, all the way.
    let again = mesh.ask(&client, again).await.unwrap();
    assert_eq!((again.state(), way(&again)), (State::Up, way(&answer)));
}

#[tokio::test]
async fn a_call_whose_namespace_does_not_come_is_refused_soon() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::with_endpoint(directory.path()).await;
    mesh.forwarder("fwd", Manner::Honest).await;
    let client = mesh.client().await;
    for url in ["inode://4/1", "file:///proc/1/ns/net"] {
        let mechanism_preferences = vec![mechanism([(INODE_URL.to_owned(), url.to_owned())].into())];
        let message = NetworkServiceRequest { connection: Some(first("a")), mechanism_preferences };
        let refused = client.request(message, &[], DEADLINE).await.unwrap_err();
        assert_eq!(refused.status.code(), Code::InvalidArgument, "{}", refused.status);
    }
    mesh.ask(&client, first("a")).await.unwrap();
}

/// Asks until the node knows what the other one has registered.
async fn ask_soon(mesh: &Mesh, client: &NextHop, connection: Connection) -> Connection {
    let until = Instant::now() + DEADLINE;
    loop {
        match mesh.ask(client, connection.clone()).await {
            Ok(answer) => return answer,
            Err(status) => assert!(Instant::now() < until, "{status}"),
        }
    }
}

#[tokio::test]
async fn a_connection_goes_through_two_nodes_and_its_client_learns_that_the_endpoint_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::of_two_nodes(directory.path()).await;
    let client = mesh.client_at("nsmgr-1").await;
    let answer = ask_soon(&mesh, &client, first("a")).await;
    let names: Vec<_> = way(&answer).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["nsc", "nsmgr-1", "fwd-1", "nsmgr-2", "fwd-2", "nse"]);
    let again = mesh.ask(&client, answer.clone()).await.unwrap();
    assert_eq!(way(&again), way(&answer), "a refresh changes nothing");
    let (sender, mut told) = mpsc::unbounded_channel();
    let following = Follower::new(again).follow(client.connection().calls(), move |changed| drop(sender.send(changed)));
    let following = tokio::spawn(following);
    mesh.kill("nse").await;
    let down = timeout(DEADLINE, told.recv()).await.expect("news over five hops").unwrap();
    assert_eq!(down.state(), State::Down);
    following.abort();
}

#[tokio::test]
async fn connections_of_one_node_and_of_two_are_made_while_the_registry_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::of_two_nodes(directory.path()).await;
    let [near, far] = [mesh.client_at("nsmgr-2").await, mesh.client_at("nsmgr-1").await];
    let answer = ask_soon(&mesh, &far, first("a")).await;
    mesh.close(&far, answer).await;
    mesh.kill("registry").await;
    let answer = mesh.ask(&near, first("b")).await.unwrap();
    assert_eq!(way(&answer).len(), 4);
    mesh.close(&near, answer).await;
    let answer = mesh.ask(&far, first("c")).await.unwrap();
    assert_eq!(way(&answer).len(), 6);
    // Names of other domains are the registry's to find.
    let foreign = Connection { network_service: "vpn@other.example".to_owned(), ..first("d") };
    assert_ne!(mesh.ask(&far, foreign.clone()).await.unwrap_err().code(), Code::NotFound);
    mesh.start_registry().await;
    let asking = async {
        while mesh.ask(&far, foreign.clone()).await.unwrap_err().code() != Code::NotFound {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, asking).await.expect("it asks the registry");
}
