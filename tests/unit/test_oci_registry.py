"""What a registry has under a digest: a small registry on this machine answers as real ones do, or lies."""

import base64
import hashlib
import http.server
import json
import threading

import pytest

from module_utils import oci_reference
from module_utils.oci_registry import Credentials, Registry, RegistryError, credentials

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


def digest_of(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def blob(content, **more):
    return {"digest": digest_of(content), "size": len(content), **more}


def manifest(**more):
    return json.dumps(
        {"mediaType": MANIFEST, "config": blob(b"{}"), "layers": [blob(b"one"), blob(b"two")], **more}
    ).encode()


class RegistrySim(http.server.ThreadingHTTPServer):
    """A stand-in for a registry: manifests by digest, with one of three ways to authenticate."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self.server_port}"
        self.manifests, self.way, self.asked = {}, "none", []

    def put(self, content):
        self.manifests[digest_of(content)] = content
        return oci_reference.parse(f"docker://{self.name}/org/tool@{digest_of(content)}")


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, shown = self.server, self.headers.get("Authorization", "")
        server.asked.append((self.path, shown))
        url = f"http://{server.name}"
        basic = "Basic " + base64.b64encode(b"user:word").decode()
        if self.path.startswith("/token"):
            known = shown in ("", basic)
            return self.answer(
                200 if known else 401, json.dumps({"token": "T" if shown else "nobody"}).encode()
            )
        if server.way == "basic" and shown != basic:
            return self.answer(401, b"", **{"WWW-Authenticate": 'Basic realm="x"'})
        if server.way == "bearer" and shown != "Bearer T":
            if shown:
                return self.answer(403, b"")
            return self.answer(401, b"", **{"WWW-Authenticate": f'Bearer realm="{url}/token",service="s"'})
        if server.way == "elsewhere" and not shown:
            return self.answer(401, b"", **{"WWW-Authenticate": 'Bearer realm="file:///etc/shadow"'})
        content = server.manifests.get(self.path.rpartition("/")[2])
        return self.answer(200 if content else 404, content or b"")

    def answer(self, code, content, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def registry_sim():
    with RegistrySim() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield server
        server.shutdown()


def ask(server, reference, architecture="amd64", account=None):
    registry = Registry(server.name, None, plain_http=True)
    # Credentials never go over plain HTTP, but for these tests, whose server has no certificate.
    registry.account = account
    return registry.manifest(reference, architecture)


def test_a_manifest_names_what_has_to_be_fetched(registry_sim):
    reference = registry_sim.put(manifest())
    found = ask(registry_sim, reference)
    assert found.digest == reference.digest and found.sif is None
    assert [b.digest for b in found.blobs] == [digest_of(b"{}"), digest_of(b"one"), digest_of(b"two")]
    assert found.size == 8


@pytest.mark.parametrize("kind", [MANIFEST, DOCKER])
def test_of_an_index_the_image_of_the_architecture_is_taken(registry_sim, kind):
    ours = manifest(mediaType=kind)
    registry_sim.put(ours)
    platforms = [("arm64", b"x"), ("amd64", ours), ("amd64", b"later")]
    reference = registry_sim.put(
        json.dumps(
            {
                "mediaType": INDEX,
                "manifests": [
                    blob(content, platform={"os": "linux", "architecture": name})
                    for name, content in platforms
                ],
            }
        ).encode()
    )
    assert ask(registry_sim, reference).digest == digest_of(ours)
    with pytest.raises(RegistryError, match="is there for amd64, arm64, not for s390x"):
        ask(registry_sim, reference, "s390x")


def test_a_registry_that_answers_with_something_else_is_found_out(registry_sim):
    reference = registry_sim.put(manifest())
    registry_sim.manifests[reference.digest] = manifest(annotations={"other": "one"})
    with pytest.raises(RegistryError, match="something else than was asked for"):
        ask(registry_sim, reference)


def test_an_index_can_not_lead_to_something_else_either(registry_sim):
    ours = manifest()
    entry = blob(ours, platform={"os": "linux", "architecture": "amd64"})
    reference = registry_sim.put(json.dumps({"mediaType": INDEX, "manifests": [entry]}).encode())
    registry_sim.manifests[digest_of(ours)] = manifest(annotations={"other": "one"})
    with pytest.raises(RegistryError, match="something else than was asked for"):
        ask(registry_sim, reference)


SIF = {
    "config": blob(b"{}", mediaType="application/vnd.sylabs.sif.config.v1+json"),
    "layers": [blob(b"sif", mediaType="application/vnd.sylabs.sif.layer.v1.sif")],
}


def test_a_sif_is_one_blob_and_has_a_scheme_of_its_own(registry_sim):
    reference = registry_sim.put(manifest(**SIF))
    assert ask(registry_sim, reference._replace(scheme="oras")).sif == (digest_of(b"sif"), 3)
    with pytest.raises(RegistryError, match="is a SIF: write oras://"):
        ask(registry_sim, reference)
    container = registry_sim.put(manifest())
    with pytest.raises(RegistryError, match="container of layers: write docker://"):
        ask(registry_sim, container._replace(scheme="oras"))


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"no JSON",
        manifest(layers=[]),
        manifest(layers="x"),
        manifest(config=None),
        manifest(layers=[1]),
        manifest(layers=[{"digest": "sha256:abc", "size": 1}]),
        manifest(layers=[{"digest": digest_of(b""), "size": -1}]),
        manifest(mediaType="application/vnd.docker.distribution.manifest.v1+json"),
        json.dumps({"mediaType": INDEX, "manifests": [1, {"platform": 2}]}).encode(),
        json.dumps({"mediaType": INDEX, "manifests": 3}).encode(),
        b" " * (4 * 1024 * 1024 + 1),
    ],
)
def test_what_is_no_image_is_refused(registry_sim, content):
    with pytest.raises(RegistryError):
        ask(registry_sim, registry_sim.put(content))


@pytest.mark.parametrize("way", ["basic", "bearer"])
def test_credentials_open_what_is_closed(registry_sim, way):
    registry_sim.way = way
    reference = registry_sim.put(manifest())
    assert ask(registry_sim, reference, account=Credentials("user", "word")).digest == reference.digest
    with pytest.raises(RegistryError, match="does not let anybody read org/tool as user"):
        ask(registry_sim, reference, account=Credentials("user", "wrong"))
    with pytest.raises(RegistryError, match="without credentials"):
        ask(registry_sim, reference)


def test_without_tls_no_password_leaves_this_machine(registry_sim):
    registry_sim.way = "basic"
    reference = registry_sim.put(manifest())
    registry = Registry(registry_sim.name, Credentials("user", "word"), plain_http=True)
    with pytest.raises(RegistryError, match="without credentials"):
        registry.manifest(reference, "amd64")
    assert registry_sim.asked and not any(shown for _, shown in registry_sim.asked)


def test_nobody_is_sent_elsewhere_for_a_token(registry_sim):
    registry_sim.way = "elsewhere"
    with pytest.raises(RegistryError, match="not known"):
        ask(registry_sim, registry_sim.put(manifest()), account=Credentials("user", "word"))


def test_what_is_not_there_is_said(registry_sim):
    reference = oci_reference.parse(f"docker://{registry_sim.name}/org/tool@{digest_of(b'x')}")
    with pytest.raises(RegistryError, match="was it deleted there"):
        ask(registry_sim, reference)
    registry_sim.server_close()
    with pytest.raises(RegistryError):
        Registry("127.0.0.1:1", plain_http=True).manifest(reference, "amd64")


def authfile(**entries):
    return json.dumps({"auths": entries}).encode()


AUTH = {"auth": base64.b64encode(b"user:a:word").decode()}


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("quay.io", "quay.io"),
        ("https://quay.io", "quay.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry:5000", "registry:5000"),
    ],
)
def test_credentials_are_found_as_docker_writes_them(key, registry):
    assert credentials(authfile(**{"other.example": {}, key: AUTH}), registry) == ("user", "a:word")


def test_other_registries_get_none_of_them():
    assert credentials(authfile(**{"quay.io": AUTH}), "quay.io.example") is None
    assert credentials(authfile(**{"quay.io": AUTH}), "quay.io:5000") is None
    assert credentials(authfile(), "quay.io") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret",
        b"[]",
        b'{"auths": 3}',
        authfile(**{"quay.io": {"auth": "secret"}}),
        authfile(**{"quay.io": {}}),
    ],
)
def test_a_wrong_file_of_credentials_is_refused_and_not_shown(content):
    with pytest.raises(RegistryError, match="registry login") as refused:
        credentials(content, "quay.io")
    assert "secret" not in str(refused.value)
