"""`python -m runtime search`: an index of pictures and texts, the best of it for a query, and a sheet to look at."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.commands.options import (
    Lines,
    add_budgets,
    add_command,
    add_resources,
    constructor_options,
    with_instruction,
)
from runtime.commands.results import replacing, require_writable
from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import InputError
from runtime.graphs.package import require_positive, require_task
from runtime.json_lines import as_item, numbered_json_lines
from runtime.manifest import Manifest
from runtime.media.source import SCHEME
from runtime.prompts.encode import DEFAULT_LIMITS, located
from runtime.reranker import Qwen3VLReranker
from runtime.search.contact_page import contact_page
from runtime.search.contact_sheet import contact_sheet
from runtime.search.documents import is_blank
from runtime.search.index_header import Header
from runtime.search.paths import relative
from runtime.search.preview import Tile, preview
from runtime.search.searcher import Hit, Searcher, read_again, require_folder, rerank
from runtime.search.vector_store import STORES, require_search_extra

TOP, RECALL = 10, 100
MOST_TILES = 500  # of a sheet or a page, which take half a megabyte each
KEPT = "; what was embedded until now is in the index, and the same command goes on from there"

DESCRIPTION = """Embed the pictures and texts of folders into an index, and search it.

  python -m runtime search EMBEDDER --index DIR --add FOLDER                    make it, or bring it up to date
  python -m runtime search EMBEDDER --index DIR --text "a red car" --sheet out.png
  python -m runtime search EMBEDDER --index DIR --text "a red car" --reranker RERANKER

Pictures are .png .jpg .jpeg .webp .gif .bmp, texts are .txt and .md (one each) and .jsonl (one a line: a string, or a
dict as `process` takes it, its paths starting at the file). Only what is new or changed is embedded, and a run that was
ended goes on where it was. An index keeps to the package, the options (--max-pixels, ...) and the store that it was
made with: those that are not given are the index's, others are refused. Results: rank, the reranker's score if there is
one, the cosine, the path. Exit code 1: something was skipped."""


def add_search(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = add_command(commands, "search", search, "find pictures and texts: index folders, recall, rerank")
    command.description = DESCRIPTION
    command.add_argument("--index", type=Path, required=True, metavar="DIR", help="the folder of the index")
    for option, text in {
        "--add": "embed what is new or changed in this folder, forget what is gone from it (may be repeated)",
        "--forget": "take this folder or file out of the index (may be repeated)",
    }.items():
        command.add_argument(option, action="append", default=[], metavar="FOLDER", help=text)
    command.add_argument("--store", choices=STORES, help="how a new index keeps vectors (default float32)")
    command.add_argument("--dimensions", type=int, help="numbers of a vector in a new index (Matryoshka; default all)")
    command.add_argument("--text", help="search for this")
    command.add_argument("--image", metavar="PATH_OR_URL", help="search for this picture, or for both together")
    command.add_argument(
        "--queries", metavar="FILE", help="JSON lines, - for standard input: a string or a dict with text, image, ..."
    )
    command.add_argument(
        "--instruction",
        help="what the query is for, replaces the packages' default; the models were trained with ones such as\n"
        '"Retrieve images or text relevant to the user\'s query."',
    )
    command.add_argument("--reranker", type=Path, metavar="PACKAGE", help="put the best in order with this one")
    command.add_argument("--top", type=int, default=TOP, help=f"documents to print (default {TOP})")
    command.add_argument("--recall", type=int, help=f"documents to rerank (default {RECALL})")
    command.add_argument("--json", action="store_true", help="a JSON line a document (always so with --queries)")
    command.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw the query and the results")
    command.add_argument("--html", type=Path, metavar="FILE.html", help="the same as a page, all in one file")
    add_budgets(command)
    add_resources(command)


def search(options: argparse.Namespace, complaints: list[str]) -> Lines:
    """A line a document. Raises InputError, PackageError, SearchIndexError, MissingExtraError."""
    _require_sense(options)
    queries = list(_queries(options))
    require_search_extra()
    # What is wrong with the rest is found now rather than after hours of embedding.
    for folder in options.add:
        require_folder(folder)
    if options.reranker:
        require_task(options.reranker, Manifest.read(options.reranker), "reranker")
    searcher = _open(options)
    try:
        _bring_up_to_date(searcher, options, complaints)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(KEPT) from None
    if not queries:
        return
    documents = searcher.index.entries.documents
    if not documents:
        more = "nothing that --add found could be used" if options.add else "give it a folder with --add"
        raise InputError(f"{options.index} holds no documents; {more}.")
    found: Iterable[list[Hit]] = (_located_search(searcher, options, query) for query in queries)
    if options.reranker:
        found = list(found)
        del searcher  # the two models need not be in memory together
        found = _reranked(options, queries, found, complaints)
    for number, hits in enumerate(found):
        yield from _lines(hits[: options.top], number, bool(options.json or options.queries))
        if options.sheet or options.html:
            words = f"{min(len(hits), options.top)} of {documents:,} documents"
            words += f", {len(hits):,} reranked" if options.reranker else ""
            _draw(queries[0][1], words, hits[: options.top], options)


def _require_sense(options: argparse.Namespace) -> None:
    """InputError for options that contradict each other or lack another."""
    asks = options.text is not None or options.image is not None
    if not (asks or options.queries or options.add or options.forget):
        raise InputError("nothing to do; give --add FOLDER to index, or --text, --image or --queries to search.")
    if asks and options.queries:
        raise InputError("--queries stands for many queries and --text or --image for one; give either.")
    names = ("reranker", "instruction", "json", "sheet", "html")
    if not (asks or options.queries) and (idle := [name for name in names if getattr(options, name)]):
        raise InputError(f"--{idle[0]} needs a query; give --text, --image or --queries, or leave it out.")
    if options.queries and (options.sheet or options.html):
        raise InputError("--sheet and --html show one query; give --text or --image instead of --queries.")
    if (options.sheet or options.html) and options.top > MOST_TILES:
        raise InputError(f"--top is {options.top}, and --sheet and --html show at most {MOST_TILES}; lower it.")
    if options.text is not None and not options.text.strip() and options.image is None:
        raise InputError("--text is empty; write what to search for.")
    for name in ("add", "forget"):
        if not all(folder.strip() for folder in getattr(options, name)):
            raise InputError(f"--{name} is empty; name a folder.")
    if options.image is not None and not SCHEME.match(options.image) and not os.path.exists(options.image):
        raise InputError(f"--image {options.image} does not exist; check the path.")
    if options.recall is not None and not options.reranker:
        raise InputError("--recall says how many documents are reranked; add --reranker, or use --top.")
    for name in ("top", "recall"):
        if getattr(options, name) is not None:
            require_positive(f"--{name}", getattr(options, name))
    if options.reranker and options.top > _recall(options):
        raise InputError(f"--top {options.top} is more than --recall {_recall(options)}, which are reranked; raise it.")
    if options.sheet:
        require_writable(options.sheet, "--sheet", (".png",))
    if options.html:
        require_writable(options.html, "--html", (".html",))


def _recall(options: argparse.Namespace) -> int:
    return RECALL if options.recall is None else int(options.recall)


def _queries(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """(place, item) of each query."""
    if options.queries:
        for line, value in numbered_json_lines(options.queries, "--queries "):
            place = f"{options.queries}, line {line}"
            item = as_item(value, place)
            if is_blank(item):
                raise InputError(f"{place}: the query is empty; write what to search for.")
            yield place, with_instruction(item, options.instruction)
    elif options.text is not None or options.image is not None:
        given = {"text": options.text, "image": options.image}
        yield (
            "",
            with_instruction({key: value for key, value in given.items() if value is not None}, options.instruction),
        )


def _open(options: argparse.Namespace) -> Searcher:
    """What is not given is as in the index: a query must not have another pixel budget than the documents."""
    header = Header.read(options.index)
    if header is None and not options.add:
        raise InputError(f"{options.index} holds no index; make one with --add FOLDER, or check the path.")
    own = header.regime.options() if header else {}
    given = {
        name: each for name, each in constructor_options(options).items() if each is not None and each is not False
    }
    embedder = Qwen3VLEmbedder(options.package, **own | given | {"show_progress": False})
    return Searcher(
        embedder,
        options.index,
        store=options.store,
        dimensions=options.dimensions,
        show_progress=bool(given.get("show_progress")),
    )


def _bring_up_to_date(searcher: Searcher, options: argparse.Namespace, complaints: list[str]) -> None:
    for folder in options.forget:
        _say(f"{folder}: {searcher.forget(folder).forgotten} forgotten")
    for folder in options.add:
        changes = searcher.add(folder)
        counts = f"{changes.embedded} embedded, {changes.unchanged} unchanged, {changes.forgotten} forgotten"
        _say(f"{folder}: {counts}, {len(changes.skipped)} skipped")
        complaints += [f"skipped: {each}" for each in changes.skipped]


def _reranked(
    options: argparse.Namespace, queries: Sequence[tuple[str, Any]], found: Sequence[list[Hit]], complaints: list[str]
) -> Iterator[list[Hit]]:
    reranker = Qwen3VLReranker(options.reranker, **constructor_options(options))
    lost: list[str] = []
    for (_, query), hits in zip(queries, found, strict=True):
        yield rerank(reranker, query, hits, skipped=lost)
    complaints += [f"not reranked: {each}" for each in dict.fromkeys(lost)]


def _located_search(searcher: Searcher, options: argparse.Namespace, query: tuple[str, Any]) -> list[Hit]:
    place, item = query
    with located(place) if place else nullcontext():
        return searcher.search(item, _recall(options) if options.reranker else options.top)


def _lines(hits: Sequence[Hit], query: int, as_json: bool) -> Iterator[str]:
    width = len(str(len(hits)))
    for rank, hit in enumerate(hits, 1):
        if as_json:
            place = {"path": relative(hit.path), "line": hit.line}
            yield json.dumps({"query": query, "rank": rank, "score": hit.score, "cosine": hit.cosine} | place)
        else:
            yield f"{rank:{width}}  {'  '.join(_figures(hit))}  {hit.name}"


def _figures(hit: Hit) -> tuple[str, ...]:
    cosine = f"cosine {hit.cosine:.4f}"
    return (cosine,) if hit.score is None else (f"score {hit.score:.4f}", cosine)


def _draw(query: Mapping[str, Any], words: str, hits: Sequence[Hit], options: argparse.Namespace) -> None:
    contents = read_again(hits)
    tiles = [
        Tile(rank, hit.name, _figures(hit), preview(contents[hit.sha256], DEFAULT_LIMITS))
        for rank, hit in enumerate(hits, 1)
    ]
    shown = preview(query, DEFAULT_LIMITS)
    if options.sheet:
        with replacing(options.sheet, "--sheet") as file:
            contact_sheet(shown, words, tiles).save(file, "PNG")
    if options.html:
        with replacing(options.html, "--html") as file:
            file.write(contact_page(shown, words, tiles).encode())


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
