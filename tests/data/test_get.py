import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from ltcam import data as datasets
from ltcam.data import DataError, get
from ltcam.data.sets import KSDD2, SETS, VOC2012, MagneticTile
from ltcam.errors import UnavailableError
from tests import lookalikes


@pytest.fixture
def server(monkeypatch):
    """Serves `.files` by name; `.cut[name]` breaks one answer off after so many bytes; `.seen` has the names asked for."""
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    state = SimpleNamespace(files={}, cut={}, seen=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.seen.append(name := self.path[1:])
            if name not in state.files:
                return self.send_error(404)
            content = state.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: state.cut.pop(name, len(content))])

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
        changes = {"mirrors": [f"{server.url}/{m}" for m in mirrors], **pinned, **changes}
        monkeypatch.setitem(get.SOURCES, name, SimpleNamespace(**{**vars(get.SOURCES[name]), **changes}))
        return content

    return put


@pytest.fixture
def small(monkeypatch):
    """The look-alike of KSDD2 is a whole one."""
    monkeypatch.setattr(KSDD2, "official", {"train": 12, "test": 8})
    monkeypatch.setattr(KSDD2, "defective", {"train": 6, "test": 4})


@pytest.fixture
def ksdd2(offer, small, tmp_path):
    return offer("ksdd2", lookalikes.ksdd2_zip(tmp_path), "a", "b")


@pytest.fixture
def tiles(offer, tmp_path, monkeypatch):
    path, sums = lookalikes.magnetic_tile_zip(tmp_path)
    monkeypatch.setattr(get, "CHECKSUMS", tmp_path)
    monkeypatch.setattr(MagneticTile, "official", {"train": 36, "test": 24})
    (tmp_path / "magnetic_tile.sha256").write_text(sums)
    offer("magnetic_tile", path, "a", "b", sha256="")
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def left(root):
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("below", ["", "KolektorSDD2/", "some/where/"])
def test_ksdd2_without_its_duplicates(below, offer, small, server, root, tmp_path, monkeypatch, caplog):
    offer("ksdd2", lookalikes.ksdd2_zip(tmp_path, below), "a")
    assert get.get("ksdd2", root) == root / "KolektorSDD2" and left(root) == ["KolektorSDD2"]
    assert len(list((root / "KolektorSDD2" / "train").iterdir())) == 24  # neither "(copy)"
    monkeypatch.setenv("LTCAM_DATA", str(root))
    assert [len(datasets.load("ksdd2", part)) for part in ("train", "test")] == [12, 8]
    assert not get.check("ksdd2", root).findings
    caplog.set_level("INFO")
    (root / ".ksdd2.partial").mkdir()  # a run was killed between its two last steps
    get.get("ksdd2")
    assert server.seen == ["a"] and "KSDD2 is complete at" in caplog.text and "nothing to fetch" in caplog.text
    assert left(root) == ["KolektorSDD2"]


@pytest.mark.parametrize("by_hand", [False, True])
def test_of_two_runs_at_once_one_fetches(by_hand, ksdd2, server, root, monkeypatch, tmp_path):
    """The other is refused, and takes nothing away from the first."""
    if by_hand:
        root.mkdir()
        shutil.copy(tmp_path / "KolektorSDD2.zip", root / get.SOURCES["ksdd2"].file)
    unpack, said = get._unpack, []

    def beside(archive, name, temporary):
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        run = f"from ltcam.data import get; get._download = get._unpack = print; get.get('ksdd2', {str(root)!r})"
        done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
        said.append(done.stderr.splitlines()[-1])
        assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before and temporary.is_dir()
        return unpack(archive, name, temporary)

    monkeypatch.setattr(get, "_unpack", beside)
    assert get.get("ksdd2", root) == root / "KolektorSDD2" and left(root) == ["KolektorSDD2"]
    assert re.fullmatch(
        rf"ltcam.errors.UnavailableError: {root} is being written by process {os.getpid()} on .*: wait .*", *said
    )


def test_voc(offer, server, root, tmp_path, monkeypatch):
    path = lookalikes.voc_tar(tmp_path)
    monkeypatch.setattr(VOC2012, "official", {"train": 8, "val": 6})
    monkeypatch.setattr(get, "CHECKSUMS", tmp_path)
    (tmp_path / "voc2012.sha256").write_text(lookalikes.checksums(tmp_path / "voc"))
    offer("voc2012", path, "a")
    assert get.get("voc2012", root) == root / "VOCdevkit" / "VOC2012" and left(root) == ["VOCdevkit"]
    assert get.get("voc2012", root) and server.seen == ["a"]
    report = get.check("voc2012", root)
    assert not report.findings and report.title == "PASCAL VOC 2012"
    folders = {path.name: len(list(path.rglob("*.*"))) for path in (root / "VOCdevkit" / "VOC2012").iterdir()}
    assert folders == {"ImageSets": 3, "JPEGImages": 14, "SegmentationClass": 14}  # not only what is summed


def test_magnetic_tile_takes_what_its_checksums_list(tiles, root):
    target = get.get("magnetic_tile", root)
    assert left(target) == ["MT_Break", "MT_Free"] and not list(root.rglob("Thumbs.db"))
    assert len(list(target.rglob("*.*"))) == 120 and not get.check("magnetic_tile", root).findings


def test_ksdd_takes_what_its_checksums_list(offer, server, root, tmp_path, monkeypatch):
    path, sums = lookalikes.ksdd_zip(tmp_path)
    monkeypatch.setattr(get, "CHECKSUMS", tmp_path)
    (tmp_path / "ksdd.sha256").write_text(sums)
    offer("ksdd", path, "a", sha256="")
    assert get.get("ksdd", root) == root / "KolektorSDD" and left(root) == ["KolektorSDD"]
    assert len(list(root.rglob("*.*"))) == 798  # without the copy
    report = get.check("ksdd", root)
    assert report.title == "KolektorSDD" and not report.findings
    shutil.rmtree(root / "KolektorSDD" / "kos01")
    with pytest.raises(DataError, match=r"KolektorSDD is subset .* not overwritten"):
        get.get("ksdd", root)


def test_a_file_that_is_not_the_authors_is_refused(tiles, server, root, tmp_path):
    sums = (tmp_path / "magnetic_tile.sha256").read_text()
    (tmp_path / "magnetic_tile.sha256").write_text("0" * 64 + sums[64:])
    with pytest.raises(RuntimeError, match=r"has 1 of 120 files missing or damaged, the first MT_Break/Imgs/exp1_num_1000.jpg"):
        get.get("magnetic_tile", root)
    assert server.seen == ["a", "b"] and left(root) == []


def test_a_download_that_is_cut_off_starts_again_at_the_next_mirror(ksdd2, server, root):
    server.cut["a"] = half = len(ksdd2) // 2
    get.get("ksdd2", root)
    assert server.seen == ["a", "b"] and left(root) == ["KolektorSDD2"]
    shutil.rmtree(root)
    server.cut["a"] = half
    del server.files["b"]
    with pytest.raises(RuntimeError) as error:
        get.get("ksdd2", root)
    assert left(root) == []
    for part in (
        f"KolektorSDD2.zip ({len(ksdd2):,} bytes, SHA-256 {hashlib.sha256(ksdd2).hexdigest()}) could not be fetched",
        f"{server.url}/a: ('Connection broken: IncompleteRead(",
        f"{server.url}/b: 404 Client Error: Not Found for url",
        "run `ltcam data get ksdd2` again, or fetch it elsewhere with `curl -C - -O URL`, "
        f"put it at {root / 'KolektorSDD2.zip'} and run it",
    ):
        assert part in str(error.value) and "\n" not in str(error.value)
    get.get("ksdd2", root)
    assert left(root) == ["KolektorSDD2"]


def test_a_mirror_that_is_not_there(ksdd2, server, root, monkeypatch):
    monkeypatch.setattr(get.SOURCES["ksdd2"], "mirrors", ["http://127.0.0.1:9/x", f"{server.url}/a"])
    get.get("ksdd2", root)
    assert server.seen == ["a"]
    shutil.rmtree(root)
    monkeypatch.setattr(get.SOURCES["ksdd2"], "mirrors", ["http://127.0.0.1:9/x"])
    with pytest.raises(RuntimeError, match=r"http://127.0.0.1:9/x: .*refused"):
        get.get("ksdd2", root)
    assert left(root) == []


@pytest.mark.parametrize("wrong", [bytes(3000), b"log in first"])
def test_another_file_is_refused_and_the_next_mirror_is_asked(wrong, ksdd2, server, root):
    server.files["a"] = wrong
    get.get("ksdd2", root)
    assert server.seen == ["a", "b"] and left(root) == ["KolektorSDD2"]
    shutil.rmtree(root)
    server.files["b"] = wrong
    with pytest.raises(RuntimeError, match=f"/b: SHA256 hash .* expected {hashlib.sha256(ksdd2).hexdigest()} but got [0-9a-f]"):
        get.get("ksdd2", root)
    assert left(root) == []


def test_by_hand(ksdd2, server, root):
    root.mkdir()
    (root / "KolektorSDD2.zip").write_bytes(ksdd2)
    get.get("ksdd2", root)
    assert not server.seen and left(root) == ["KolektorSDD2"]


def test_by_hand_and_cut_short(ksdd2, server, root, tiles):
    root.mkdir()
    (root / "KolektorSDD2.zip").write_bytes(ksdd2[:-10])
    with pytest.raises(
        DataError, match=rf"KolektorSDD2.zip has {len(ksdd2) - 10:,} bytes, expected {len(ksdd2):,}, and SHA-256"
    ):
        get.get("ksdd2", root)
    name = get.SOURCES["magnetic_tile"].file
    (root / name).write_bytes(tiles.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{name} cannot be unpacked .*: it is damaged or another file; remove it and fetch it"):
        get.get("magnetic_tile", root)
    assert left(root) == ["KolektorSDD2.zip", name] and not server.seen  # what a reader put there is the reader's to remove


def test_a_damaged_archive_whose_sum_is_not_known_is_refused(tiles, server, root):
    with zipfile.ZipFile(tiles) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith(".jpg"))
    content = bytearray(server.files["a"])
    content[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 1
    server.files["a"] = content
    get.get("magnetic_tile", root)
    assert server.seen == ["a", "b"] and left(root) == ["magnetic_tile"]


OUTSIDE = ["../../evil", "TMP/evil", "a/../../../evil", "C:/evil", "\\\\host\\evil", "a\\..\\..\\evil", ".."]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_nothing_is_written_outside_of_the_folder(kind, name, offer, root, tmp_path):
    """Not even by the pinned archive: a tar's filter refuses a path outside or makes it one inside, as zipfile does."""
    path, member = tmp_path / f"bad.{kind}", f"VOCdevkit/VOC2012/{name.replace('TMP', str(tmp_path))}"
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            for file in ("VOCdevkit/VOC2012/good.txt", member):
                tar.addfile(tarfile.TarInfo(file))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for file in ("VOCdevkit/VOC2012/good.txt", member):
                archive.writestr(file, "text")
    offer("voc2012", path, "a", file=path.name)
    with suppress(UnavailableError):
        get.get("voc2012", root)
    written = {p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("*")}
    assert written <= {(path.name,), ("data",), ("data", "VOCdevkit"), ("data", path.name)}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_files_are_taken(kind, offer, root, tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("VOCdevkit/VOC2012/a")
        info.type = kind
        tar.addfile(info)
    offer("voc2012", tmp_path / "bad.tar", "a")
    with pytest.raises(UnavailableError, match=r"cannot be unpacked \(.*special file"):
        get.get("voc2012", root)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        info = zipfile.ZipInfo("train/2.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../../target")
    offer("ksdd2", tmp_path / "bad.zip", "a")
    assert (get.get("ksdd2", root) / "train" / "2.png").read_text() == "../../target"  # a file, no link


@pytest.mark.parametrize("moment", ["fetching", "unpacking"])
def test_a_disk_that_fills(moment, ksdd2, server, root, monkeypatch):
    """It is not the mirror's fault: no other is asked. What is whole is not fetched again."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        owner, name = (get.pooch, "retrieve") if moment == "fetching" else (get.shutil, "unpack_archive")
        patch.setattr(owner, name, full)
        with pytest.raises(RuntimeError, match=r"cannot be written \(No space left on device\): make room and run again"):
            get.get("ksdd2", root)
    assert left(root) == ([] if moment == "fetching" else ["KolektorSDD2.zip"])
    get.get("ksdd2", root)
    assert left(root) == ["KolektorSDD2"] and server.seen == ["a"]


def test_what_a_killed_run_left_is_replaced(ksdd2, root):
    (root / ".ksdd2.partial" / "whole" / "train").mkdir(parents=True)
    (root / ".ksdd2.partial" / "whole" / "train" / "1.png").write_text("half")
    get.get("ksdd2", root)
    assert left(root) == ["KolektorSDD2"] and not (root / "KolektorSDD2" / "train" / "1.png").exists()


def test_nothing_is_overwritten(ksdd2, server, root):
    get.get("ksdd2", root)
    (root / "KolektorSDD2" / "train" / "10003_GT.png").unlink()
    with pytest.raises(
        DataError, match=r"KolektorSDD2 is incomplete \(see `ltcam data check ksdd2`.* not overwritten: move it away"
    ):
        get.get("ksdd2", root)
    lookalikes.voc(root)
    with pytest.raises(DataError, match="VOC2012 is subset"):
        get.get("voc2012", root)
    assert len(server.seen) == 1


def test_names(root, caplog):
    caplog.set_level("INFO")
    assert get.get("demo", root) == root and "nothing to fetch" in caplog.text and not root.exists()
    with pytest.raises(
        DataError, match="data set 'coco' is unknown: expected one of demo, voc2012, magnetic_tile, ksdd, ksdd2"
    ):
        get.get("coco", root)


def test_a_set_that_cannot_be_fetched_is_one_clear_error(root, monkeypatch):
    """One that a user has added, say: its files are put there by hand, and `check` decodes them."""
    mine = type("Mine", (KSDD2,), {"name": "mine", "title": "Mine", "folder": "mine", "official": {"train": 12, "test": 8}})
    monkeypatch.setitem(SETS, "mine", mine)
    monkeypatch.setattr(mine, "defective", {})
    assert get.listing(root).set_index("name").loc["mine", ["state", "download", "licence"]].tolist() == ["absent", "-", "-"]
    with pytest.raises(
        DataError, match=r"mine has no entry in ltcam/data/sources.yaml: expected one of voc2012, .*put its files"
    ):
        get.get("mine", root)
    (lookalikes.ksdd2(root) / "KolektorSDD2").rename(root / "mine")
    assert get.get("mine", root) == root / "mine" and not get.check("mine", root).findings


def test_listing(ksdd2, root):
    lookalikes.voc(root)
    get.get("ksdd2", root)
    found = get.listing(root).set_index("name")
    assert found["state"].to_dict() == {
        "demo": "present", "voc2012": "subset", "magnetic_tile": "absent", "ksdd": "absent", "ksdd2": "present",
    }  # fmt: skip
    assert found["where"]["ksdd2"] == str(root / "KolektorSDD2") and found["download"]["voc2012"] == "2.00GB"
    assert found["where"]["demo"] == "made on the fly" and found["download"]["ksdd"] == "about 353MB"
    assert found["licence"]["ksdd2"] == "CC BY-NC-SA 4.0"


def test_the_sources_are_pinned():
    assert set(get.SOURCES) == set(SETS) - {"demo"}
    for name, source in get.SOURCES.items():
        assert len(source.sha256) == 64 or len(get.checksums(name)) == {"magnetic_tile": 2688, "ksdd": 798}[name]
        assert all(url.startswith("https://") or source.sha256 for url in source.mirrors)
        assert source.file.endswith((".tar", ".zip")) and len(source.mirrors) >= 2


def repacked(path, kind):
    """A zip as another program packs it: a method that this Python lacks, a password, or bytes that are no longer LZMA."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    packed = zipfile.ZIP_LZMA if kind == "lzma" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, content in members:
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    if kind == "lzma":
        content[content.index(b".jpg") + 8] = 255  # its settings, behind the head and four bytes more
    for mark, method, flags in ((b"PK\x03\x04", 8, 6), (b"PK\x01\x02", 10, 8)):  # the heads of each member
        at = content.find(mark)
        while at >= 0 and kind != "lzma":
            if kind == "password":
                content[at + flags] |= 1
            else:
                content[at + method : at + method + 2] = {"deflate64": 9, "zstd": 93}[kind].to_bytes(2, "little")
            at = content.find(mark, at + 4)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["deflate64", "zstd", "password", "lzma"])
def test_a_zip_that_cannot_be_unpacked_here_is_one_clear_error(kind, tiles, root):
    """Put there by hand; it stays, and nothing else is left."""
    repacked(tiles, kind)
    root.mkdir()
    there = shutil.copy(tiles, root / get.SOURCES["magnetic_tile"].file)
    do = "it is damaged or another file; remove it and fetch it again, or unpack it by another program, as data/README.md says"
    with pytest.raises(DataError, match=rf"zip cannot be unpacked \([^\n]+\): {do}"):
        get.get("magnetic_tile", root)
    assert left(root) == [there.name]
