import hashlib
import io
import re
import shutil
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from ltcam import data as datasets
from ltcam.data import DataError, checks, fetch, presence, voc
from tests import lookalikes


@pytest.fixture
def server(monkeypatch):
    """Serves `.files` by name; `.cut[name]` breaks one answer off after so many bytes; `.seen` has (name, Range) of each."""
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    state = SimpleNamespace(files={}, cut={}, seen=[], ranges=True, lengths=True, shift=0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name, asked = self.path[1:], self.headers.get("Range")
            state.seen.append((name, asked))
            if name not in state.files:
                return self.send_error(404)
            content = state.files[name]
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and state.ranges else 0
            self.send_response(206 if asked and state.ranges else 200)
            if asked and state.ranges:
                self.send_header("Content-Range", f"bytes {start + state.shift}-{len(content) - 1}/{len(content)}")
            if state.lengths:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + state.cut.pop(name, len(content))])

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{httpd.server_port}"
        yield state
        httpd.shutdown()
        thread.join()


@pytest.fixture
def offer(server, monkeypatch):
    """Put an archive on the server as the source of a data set, at each of the named mirrors."""

    def put(name, path, *mirrors, **changes):
        content = path.read_bytes()
        server.files.update(dict.fromkeys(mirrors, content))
        pinned = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        changes = {"mirrors": tuple(f"{server.url}/{m}" for m in mirrors), **pinned, **changes}
        monkeypatch.setitem(fetch.SOURCES, name, fetch.SOURCES[name]._replace(**changes))
        return content

    return put


@pytest.fixture
def ksdd2(offer, tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "KSDD2", {"train": (6, 6), "test": (4, 4)})
    return offer("ksdd2", lookalikes.ksdd2_zip(tmp_path), "a", "b")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def left(root):
    return sorted(path.name for path in root.iterdir())


PARTIAL = "KolektorSDD2.zip.partial"


@pytest.mark.parametrize("below", ["", "KolektorSDD2/", "some/where/"])
def test_ksdd2_without_its_duplicates(below, offer, server, root, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(presence, "KSDD2", {"train": (6, 6), "test": (4, 4)})
    offer("ksdd2", lookalikes.ksdd2_zip(tmp_path, below), "a")
    assert fetch.get("ksdd2", root) == root / "KolektorSDD2" and left(root) == ["KolektorSDD2"]
    assert len(list((root / "KolektorSDD2" / "train").iterdir())) == 24  # neither "(copy)"
    monkeypatch.setenv("LTCAM_DATA", str(root))
    assert [len(datasets.load("ksdd2", part)) for part in ("train", "test")] == [12, 8]
    assert not checks.check("ksdd2", root).findings
    caplog.set_level("INFO")
    (root / PARTIAL).write_bytes(b"PK")  # a run was killed between its two last steps
    fetch.get("ksdd2")
    assert len(server.seen) == 1 and "KSDD2 is complete at" in caplog.text and "nothing to fetch" in caplog.text
    assert left(root) == ["KolektorSDD2"]


def test_voc(offer, server, root, tmp_path, monkeypatch):
    monkeypatch.setattr(voc, "OFFICIAL", {"train": 8, "val": 6})
    offer("voc2012", lookalikes.voc_tar(tmp_path), "a")
    assert fetch.get("voc2012", root) == root / "VOCdevkit" / "VOC2012" and left(root) == ["VOCdevkit"]
    assert fetch.get("voc2012", root) and len(server.seen) == 1
    report = checks.check("voc2012", root)
    assert not report.findings and report.title == "PASCAL VOC 2012"
    folders = {path.name: len(list(path.rglob("*.*"))) for path in (root / "VOCdevkit" / "VOC2012").iterdir()}
    assert folders == {"Annotations": 14, "ImageSets": 3, "JPEGImages": 14, "SegmentationClass": 14}  # not only what is summed
    monkeypatch.setenv("LTCAM_DATA", str(root))
    assert datasets.load("voc2012", "val", annotations=True).labels.sum(dim=1).tolist() == [
        1,
        2,
        1,
        1,
        2,
        1,
    ]  # and difficult ones


@pytest.fixture
def tiles(offer, tmp_path, monkeypatch):
    path, sums = lookalikes.magnetic_tile_zip(tmp_path)
    monkeypatch.setattr(presence, "CHECKSUMS", tmp_path)
    (tmp_path / "magnetic_tile.sha256").write_text(sums)
    offer("magnetic_tile", path, "a", "b", sha256="")
    return path


@pytest.mark.parametrize("lengths", [True, False])
def test_magnetic_tile_takes_what_its_checksums_list(lengths, tiles, server, root):
    server.lengths = lengths
    target = fetch.get("magnetic_tile", root)
    assert left(target) == ["MT_Break", "MT_Free"] and not list(root.rglob("Thumbs.db"))
    assert len(list(target.rglob("*.*"))) == 120 and not checks.check("magnetic_tile", root).findings


def test_ksdd_takes_what_its_checksums_list(offer, server, root, tmp_path, monkeypatch):
    path, sums = lookalikes.ksdd_zip(tmp_path)
    monkeypatch.setattr(presence, "CHECKSUMS", tmp_path)
    (tmp_path / "ksdd.sha256").write_text(sums)
    offer("ksdd", path, "a", sha256="")
    assert fetch.get("ksdd", root) == root / "KolektorSDD" and left(root) == ["KolektorSDD"]
    assert len(list(root.rglob("*.*"))) == 798  # without the copy
    report = checks.check("ksdd", root)
    assert report.title == "KolektorSDD" and not report.findings and not report.notes
    assert fetch.get("ksdd", root) and len(server.seen) == 1
    found = fetch.listing(root).set_index("name").loc["ksdd"]
    assert found["state"] == "present" and found["download"].startswith("about ") and found["licence"] == "CC BY-NC-SA 4.0"
    shutil.rmtree(root / "KolektorSDD" / "kos01")
    with pytest.raises(DataError, match=r"KolektorSDD is subset .* not overwritten"):
        fetch.get("ksdd", root)
    shutil.rmtree(root)
    (tmp_path / "ksdd.sha256").write_text("0" * 64 + sums[64:])
    with pytest.raises(RuntimeError, match=r"has 1 of 798 files missing or damaged, the first kos01/Part0.jpg"):
        fetch.get("ksdd", root)


def test_a_tile_that_is_not_the_authors_is_refused(tiles, server, root, tmp_path):
    sums = (tmp_path / "magnetic_tile.sha256").read_text()
    (tmp_path / "magnetic_tile.sha256").write_text("0" * 64 + sums[64:])
    with pytest.raises(RuntimeError, match=r"has 1 of 120 files missing or damaged, the first MT_Break/Imgs/exp1_num_1000.jpg"):
        fetch.get("magnetic_tile", root)
    assert left(root) == []


def test_a_tile_archive_that_breaks_off_is_not_gone_on_with(tiles, server, root):
    server.cut["a"] = 5000
    fetch.get("magnetic_tile", root)
    assert server.seen == [("a", None), ("b", None)] and left(root) == ["magnetic_tile"]
    shutil.rmtree(root)
    server.cut.update(a=5000, b=5000)
    with pytest.raises(RuntimeError, match=r"SHA-256 of its files in data/checksums.*/a: broke off after 5,000 of"):
        fetch.get("magnetic_tile", root)
    assert left(root) == []


def test_an_interrupted_download_goes_on(ksdd2, server, root):
    server.cut["a"] = half = len(ksdd2) // 2
    del server.files["b"]
    with pytest.raises(RuntimeError) as error:
        fetch.get("ksdd2", root)
    assert left(root) == [PARTIAL] and (root / PARTIAL).read_bytes() == ksdd2[:half]
    for part in (
        f"KolektorSDD2.zip ({len(ksdd2):,} bytes, SHA-256 {hashlib.sha256(ksdd2).hexdigest()}) could not be fetched",
        f"{server.url}/a: broke off after {half:,} of {len(ksdd2):,} bytes; {server.url}/b: HTTP 404",
        f"run `ltcam data get ksdd2` again later, or fetch it elsewhere, put it at {root / 'KolektorSDD2.zip'} and run that",
    ):
        assert part in str(error.value) and "\n" not in str(error.value)
    fetch.get("ksdd2", root)
    assert server.seen[-1] == ("a", f"bytes={half}-") and left(root) == ["KolektorSDD2"]


def test_the_next_mirror_goes_on(ksdd2, server, root):
    server.cut["a"] = 1000
    fetch.get("ksdd2", root)
    assert server.seen == [("a", None), ("b", "bytes=1000-")] and left(root) == ["KolektorSDD2"]


def test_a_server_without_ranges_starts_over(ksdd2, server, root):
    server.ranges = False
    server.cut["a"] = 1000
    fetch.get("ksdd2", root)
    assert server.seen[1] == ("b", "bytes=1000-") and left(root) == ["KolektorSDD2"]


def test_another_range_than_asked_for_is_refused(ksdd2, server, root):
    server.cut["a"], server.shift = 1000, 1
    with pytest.raises(RuntimeError, match="/b: was asked for the bytes from 1000 on and sends bytes 1001-"):
        fetch.get("ksdd2", root)
    assert (root / PARTIAL).read_bytes() == ksdd2[:1000]


def test_404_then_a_mirror(ksdd2, server, root):
    del server.files["a"]
    fetch.get("ksdd2", root)
    assert server.seen == [("a", None), ("b", None)]


def test_a_mirror_that_is_not_there(ksdd2, server, root, monkeypatch):
    dead = fetch.SOURCES["ksdd2"]._replace(mirrors=("http://127.0.0.1:9/x", f"{server.url}/a"))
    monkeypatch.setitem(fetch.SOURCES, "ksdd2", dead)
    fetch.get("ksdd2", root)
    assert server.seen == [("a", None)]
    shutil.rmtree(root)
    monkeypatch.setitem(fetch.SOURCES, "ksdd2", dead._replace(mirrors=dead.mirrors[:1]))
    with pytest.raises(RuntimeError, match=r"http://127.0.0.1:9/x: .*refused"):
        fetch.get("ksdd2", root)
    assert left(root) == []


def test_a_wrong_checksum_is_removed_and_the_next_mirror_starts_from_zero(ksdd2, server, root):
    server.files["a"] = bytes(len(ksdd2))
    fetch.get("ksdd2", root)
    assert server.seen == [("a", None), ("b", None)] and left(root) == ["KolektorSDD2"]
    shutil.rmtree(root)
    server.files["b"] = server.files["a"]
    with pytest.raises(RuntimeError, match=f"/b: .* has SHA-256 [0-9a-f]{{64}}, expected {hashlib.sha256(ksdd2).hexdigest()}"):
        fetch.get("ksdd2", root)
    assert left(root) == []


def test_a_mirror_is_not_blamed_for_the_part_it_went_on_with(ksdd2, server, root):
    root.mkdir()
    (root / PARTIAL).write_bytes(bytes(1000))
    del server.files["b"]
    fetch.get("ksdd2", root)
    assert server.seen == [("a", "bytes=1000-"), ("b", None), ("a", None)] and left(root) == ["KolektorSDD2"]


@pytest.mark.parametrize("lengths", [True, False])
def test_a_page_instead_of_the_file(lengths, ksdd2, server, root):
    server.cut["a"], server.files["b"] = 1000, b"log in first"
    server.lengths = lengths
    with pytest.raises(RuntimeError, match=r"/b: (has 12 bytes, expected|broke off after)"):
        fetch.get("ksdd2", root)
    if lengths:  # told before anything is written
        assert (root / PARTIAL).read_bytes() == ksdd2[:1000]


def test_a_file_that_does_not_end(ksdd2, server, root):
    server.files = {"a": ksdd2 + b"more"}
    server.lengths = False
    with pytest.raises(RuntimeError, match="/a: does not end where it should"):
        fetch.get("ksdd2", root)
    assert left(root) == []


def test_by_hand(ksdd2, server, root):
    root.mkdir()
    (root / "KolektorSDD2.zip").write_bytes(ksdd2)
    fetch.get("ksdd2", root)
    assert not server.seen and left(root) == ["KolektorSDD2"]


def test_by_hand_and_cut_short(ksdd2, server, root, tiles):
    root.mkdir()
    (root / "KolektorSDD2.zip").write_bytes(ksdd2[:-10])
    with pytest.raises(DataError, match=rf"KolektorSDD2.zip has {len(ksdd2) - 10:,} bytes, expected {len(ksdd2):,}: it is"):
        fetch.get("ksdd2", root)
    name = fetch.SOURCES["magnetic_tile"].file
    (root / name).write_bytes(tiles.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{name} cannot be unpacked .*: it is damaged; remove it and fetch it again"):
        fetch.get("magnetic_tile", root)
    assert left(root) == ["KolektorSDD2.zip", name] and not server.seen


def member(kind, name, tmp_path):
    """A tar or zip with one good file and one that must be refused."""
    path = tmp_path / f"bad.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            for path_, type_ in (("VOCdevkit/VOC2012/a.txt", tarfile.REGTYPE), (name[0], name[1])):
                info = tarfile.TarInfo(path_)
                info.type, info.linkname = type_, "VOCdevkit/VOC2012/a.txt"
                tar.addfile(info, io.BytesIO(b""))
            info = tarfile.TarInfo("VOCdevkit/VOC2012/b.txt")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train/1.png", "image")
            info = zipfile.ZipInfo(name[0])
            info.external_attr = name[1] << 16
            archive.writestr(info, "../../target")
    return path


TAR = [
    ("../evil", tarfile.REGTYPE), ("/tmp/evil", tarfile.REGTYPE), ("VOCdevkit/VOC2012/../../../evil", tarfile.REGTYPE),
    ("VOCdevkit/VOC2012/l", tarfile.SYMTYPE), ("VOCdevkit/VOC2012/l", tarfile.LNKTYPE),
    ("VOCdevkit/VOC2012/d", tarfile.CHRTYPE), ("VOCdevkit/VOC2012/f", tarfile.FIFOTYPE),
]  # fmt: skip
ZIP = [
    ("../evil", 0), ("/tmp/evil", 0), ("train/../../2.png", stat.S_IFREG), ("C:\\evil", 0), ("train\\..\\..\\evil", 0),
    ("train/2.png", stat.S_IFLNK | 0o777), ("train/2.png", stat.S_IFIFO),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "kind", "bad"), [*(("voc2012", "tar", bad) for bad in TAR), *(("ksdd2", "zip", bad) for bad in ZIP)]
)
def test_an_unsafe_archive_is_refused(data, kind, bad, offer, root, tmp_path):
    path = member(kind, bad, tmp_path)
    offer(data, path, "a")
    with pytest.raises(
        RuntimeError, match=rf"/a: .* holds {re.escape(repr(bad[0]))}, a link, a device or a path outside of it"
    ):
        fetch.get(data, root)
    assert left(root) == [] and not (tmp_path / "evil").exists()
    shutil.copy(path, by_hand := root / fetch.SOURCES[data].file)
    with pytest.raises(DataError, match="refused; remove it"):
        fetch.get(data, root)
    assert left(root) == [by_hand.name]  # what a reader put there is the reader's to remove


def test_an_archive_that_unpacks_to_far_more_is_refused(offer, root, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/1.png", bytes(1_000_000))
    offer("ksdd2", tmp_path / "bomb.zip", "a")
    with pytest.raises(RuntimeError, match=r"would unpack to 1,000,000 bytes, expected about \d"):
        fetch.get("ksdd2", root)
    assert left(root) == []


def test_an_archive_of_something_else_is_refused(offer, root, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    offer("ksdd2", tmp_path / "other.zip", "a")
    with pytest.raises(RuntimeError, match="would unpack to 0 bytes"):
        fetch.get("ksdd2", root)


def test_a_full_disk_is_said_first(ksdd2, server, root, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * len(ksdd2) - 1))
    with pytest.raises(RuntimeError, match=rf"has {2 * len(ksdd2) - 1:,} bytes free, {2 * len(ksdd2):,} are needed: make room"):
        fetch.get("ksdd2", root)
    assert not server.seen and left(root) == []
    (root / PARTIAL).write_bytes(ksdd2[:1])  # one byte less to come
    fetch.get("ksdd2", root)
    shutil.rmtree(root / "KolektorSDD2")
    (root / "KolektorSDD2.zip").write_bytes(ksdd2)  # nothing to come
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=len(ksdd2) - 1))
    with pytest.raises(RuntimeError, match=rf"{len(ksdd2):,} are needed: make room"):
        fetch.get("ksdd2", root)
    assert left(root) == ["KolektorSDD2.zip"]


def test_a_disk_that_fills_while_writing(ksdd2, server, root, monkeypatch):
    def full(source, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetch.shutil, "copyfileobj", full)
        with pytest.raises(RuntimeError, match=r"cannot be written \(.*No space left on device\): fix this and run again"):
            fetch.get("ksdd2", root)
    assert left(root) == [PARTIAL] and len(server.seen) == 1  # not the mirror's fault: no other is asked
    fetch.get("ksdd2", root)
    assert left(root) == ["KolektorSDD2"] and len(server.seen) == 1  # whole: not fetched again


def test_a_disk_that_fills_while_downloading(ksdd2, server, root, monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:100])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetch.Path, "open", lambda path, mode: Full(path, mode))
        with pytest.raises(
            RuntimeError, match=rf"{root} cannot be written \(.*No space left on device\): fix this and run again"
        ):
            fetch.get("ksdd2", root)
    assert left(root) == [PARTIAL] and len(server.seen) == 1  # not the mirror's fault: no other is asked
    fetch.get("ksdd2", root)
    assert server.seen[-1] == ("a", "bytes=100-") and left(root) == ["KolektorSDD2"]


def test_what_a_killed_run_left_is_replaced(ksdd2, root):
    (root / ".ksdd2.partial" / "train").mkdir(parents=True)
    (root / ".ksdd2.partial" / "train" / "1.png").write_text("half")
    fetch.get("ksdd2", root)
    assert left(root) == ["KolektorSDD2"] and not (root / "KolektorSDD2" / "train" / "1.png").exists()


def test_nothing_is_overwritten(ksdd2, server, root):
    fetch.get("ksdd2", root)
    (root / "KolektorSDD2" / "train" / "10003_GT.png").unlink()
    with pytest.raises(
        DataError, match=r"KolektorSDD2 is incomplete \(see `ltcam data check ksdd2`.* not overwritten: move it away"
    ):
        fetch.get("ksdd2", root)
    lookalikes.voc(root)
    with pytest.raises(DataError, match="VOC2012 is subset"):
        fetch.get("voc2012", root)
    assert len(server.seen) == 1


def test_names(root, caplog):
    caplog.set_level("INFO")
    assert fetch.get("demo", root) == root and "nothing to fetch" in caplog.text
    with pytest.raises(
        DataError, match="data set 'coco' is unknown: expected one of demo, voc2012, magnetic_tile, ksdd, ksdd2"
    ):
        fetch.get("coco", root)


def test_listing(ksdd2, root):
    lookalikes.voc(root)
    fetch.get("ksdd2", root)
    found = fetch.listing(root).set_index("name")
    assert found["state"].to_dict() == {
        "demo": "present", "voc2012": "subset", "magnetic_tile": "absent", "ksdd": "absent", "ksdd2": "present",
    }  # fmt: skip
    assert found["where"]["ksdd2"] == str(root / "KolektorSDD2") and found["download"]["voc2012"] == "2.00GB"
    assert found["licence"]["ksdd2"] == "CC BY-NC-SA 4.0"


def test_the_sources_are_pinned():
    for name, source in fetch.SOURCES.items():
        assert len(source.sha256) == 64 or len(presence.checksums(name)) == {"magnetic_tile": 2688, "ksdd": 798}[name]
        assert all(url.startswith("https://") or source.sha256 for url in source.mirrors)
        assert source.file.endswith((".tar", ".zip")) and len(source.mirrors) >= 2
