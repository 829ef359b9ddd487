"""The ledger of the online loop: every prompt of every round, with all that was drawn for it.

One Parquet file a round, queried with DuckDB. A row is a prompt; its lists have an entry for each
response, in the order drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nplus.records import InputError
from nplus.runs.storage import replaced

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A prompt's responses in one round, how they were scored, and which two became a pair."""

    round: int
    prompt: str
    """The prompt's id."""
    query: str
    policies: tuple[str, ...]
    """Who wrote each response, as `sft` or `round1`."""
    policy_hashes: tuple[str, ...]
    """Hash of the weights of each."""
    temperatures: tuple[float, ...]
    seeds: tuple[str, ...]
    """Key of the sampling noise of each (`nplus.seeding.name_of`)."""
    responses: tuple[str, ...]
    tokens: tuple[int, ...]
    """Lengths through EOS."""
    characters: tuple[int, ...]
    ended: tuple[bool, ...]
    """Whether the response ends by itself."""
    scorer_hashes: tuple[str, ...]
    """Hash of what decides the scores of each member: its weights, its config.json and how it is
    read, and the verifiable rewards beside it."""
    member_scores: tuple[tuple[float, ...], ...]
    """A list for each member."""
    scores: tuple[float, ...]
    """Raw: of an ensemble, what its members come to."""
    penalised: tuple[float, ...]
    raw_order: tuple[int, ...]
    """Responses from the best raw score to the worst."""
    penalised_order: tuple[int, ...]
    reference_hash: str
    """Hash of the weights of the policy that the loss refers to."""
    pairing: str
    comparator_hash: str
    """Hash of the weights of the pairwise model that was asked; empty where scores decided."""
    matches: tuple[tuple[int, ...], ...]
    """The two responses of each match that it judged, in order; the last is that of the best and
    the worst. Empty where scores decided."""
    preferences: tuple[float, ...]
    """p(the first of a match is better)."""
    length_penalty: float
    length_unit: str
    chosen: int
    """Index of the preferred response of the pair."""
    rejected: int
    margin: float
    """Penalised score of the chosen response less that of the other; of a pairwise model, p(chosen
    is better) less p(the other is)."""
    reason: str
    """Why the pair is left out; empty for one that is kept."""


_TYPES: Mapping[str, str] = {
    "int": "int64",
    "float": "float64",
    "str": "string",
    "tuple[str, ...]": "list<string>",
    "tuple[int, ...]": "list<int64>",
    "tuple[float, ...]": "list<float64>",
    "tuple[bool, ...]": "list<bool>",
    "tuple[tuple[int, ...], ...]": "list<list<int64>>",
    "tuple[tuple[float, ...], ...]": "list<list<float64>>",
}


def _schema() -> pa.Schema:
    import pyarrow as pa

    plain = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}

    def arrow(name: str) -> pa.DataType:
        if name.startswith("list<"):
            return pa.list_(arrow(name[5:-1]))
        return pa.bool_() if name == "bool" else plain[name]

    return pa.schema([(part.name, arrow(_TYPES[str(part.type)])) for part in fields(LedgerRow)])


def write_ledger(path: Path, rows: Sequence[LedgerRow]) -> None:
    """Write one round's rows as Parquet, aside and then renamed; equal rows give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [part.name for part in fields(LedgerRow)]
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    table = pa.Table.from_pydict(columns, schema=_schema())
    with replaced(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def read_ledger(path: Path) -> list[LedgerRow]:
    """What `write_ledger` wrote. Raises InputError for a file that is none or damaged."""
    import pyarrow.parquet as pq

    mend = "remove its stage's directory and run again"
    try:
        table = pq.read_table(path)
    except Exception as error:  # of pyarrow's many kinds
        raise InputError(f"{path}: not a ledger that can be read ({error}); {mend}") from error
    if table.schema != _schema():
        raise InputError(f"{path}: not the columns of a ledger; {mend}")
    return [
        LedgerRow(**{name: _tupled(value) for name, value in row.items()})
        for row in table.to_pylist()
    ]


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


VIEWS: Mapping[str, tuple[str, str]] = {
    "samples": (
        "every response: round, prompt, number, policy, temperature, score, length, chosen or not",
        """
        SELECT round, prompt, i - 1 AS sample, policies[i] AS policy,
          policy_hashes[i] AS policy_hash, temperatures[i] AS temperature, seeds[i] AS seed,
          responses[i] AS response, tokens[i] AS tokens, characters[i] AS characters,
          ended[i] AS ended, scores[i] AS score, penalised[i] AS penalised,
          reason = '' AND chosen = i - 1 AS is_chosen, reason = '' AND rejected = i - 1
            AS is_rejected
        FROM (SELECT *, unnest(range(1, len(responses) + 1)) AS i FROM ledger)
        """,
    ),
    "pairs": (
        "every pair that is kept, with both texts, scores and lengths",
        """
        SELECT round, prompt, query, responses[chosen + 1] AS chosen_text,
          responses[rejected + 1] AS rejected_text, scores[chosen + 1] AS chosen_score,
          scores[rejected + 1] AS rejected_score, margin, tokens[chosen + 1] AS chosen_tokens,
          tokens[rejected + 1] AS rejected_tokens, policies[chosen + 1] AS chosen_policy,
          policies[rejected + 1] AS rejected_policy
        FROM ledger WHERE reason = ''
        """,
    ),
    "matches": (
        "every match that a pairwise model judged: its two responses and p(the first is better)",
        """
        SELECT round, prompt, i AS number, matches[i][1] AS response, matches[i][2] AS opponent,
          preferences[i] AS p, comparator_hash
        FROM (SELECT *, unnest(range(1, len(matches) + 1)) AS i FROM ledger)
        """,
    ),
    "reward_by_round": (
        "mean raw score of all responses, of the best and of the worst to a prompt",
        """
        SELECT round, count(*) AS prompts, avg(list_avg(scores)) FILTER (known) AS reward,
          avg(list_max(scores)) FILTER (known) AS best,
          avg(list_min(scores)) FILTER (known) AS worst,
          avg(margin) FILTER (reason = '') AS margin
        FROM (SELECT *, isfinite(list_sum(scores)) AS known
          FROM ledger) GROUP BY round ORDER BY round
        """,
    ),
    "length_by_round": (
        "mean length in tokens of all responses and of both sides of the pairs; the mean over "
        "prompts of the correlation of score and length",
        """
        WITH by_prompt AS (
          SELECT round, prompt, avg(tokens) AS tokens, avg(ended::INT) AS ended,
            CASE WHEN bool_and(isfinite(score)) AND stddev_pop(tokens) > 0
              AND stddev_pop(score) FILTER (isfinite(score)) > 0
              THEN corr(score, tokens) FILTER (isfinite(score)) END AS correlation
          FROM samples GROUP BY round, prompt)
        SELECT s.round, s.tokens, s.ended, p.chosen_tokens, p.rejected_tokens, s.correlation
        FROM (SELECT round, avg(tokens) AS tokens, avg(ended) AS ended,
            avg(correlation) AS correlation FROM by_prompt GROUP BY round) AS s
        LEFT JOIN (SELECT round, avg(chosen_tokens) AS chosen_tokens,
            avg(rejected_tokens) AS rejected_tokens FROM pairs GROUP BY round) AS p USING (round)
        ORDER BY round
        """,
    ),
    "left_out": (
        "share of prompts whose pair is left out, by reason",
        """
        SELECT round, count(*) AS prompts, avg((reason = 'tie')::INT) AS tie,
          avg((reason = 'duplicate')::INT) AS duplicate, avg((reason = 'margin')::INT) AS margin,
          avg((reason = 'nan')::INT) AS nan, avg((reason = 'truncated')::INT) AS truncated,
          avg((reason = '')::INT) AS kept
        FROM ledger GROUP BY round ORDER BY round
        """,
    ),
    "reuse": (
        "how many rounds a prompt was drawn in, and how many of its pairs are different",
        """
        SELECT rounds, count(*) AS prompts, avg(distinct_pairs / kept) AS distinct_pairs
        FROM (
          SELECT prompt, count(*) AS rounds, nullif(count(*) FILTER (reason = ''), 0) AS kept,
            count(DISTINCT responses[chosen + 1] || chr(0) || responses[rejected + 1])
              FILTER (reason = '') AS distinct_pairs
          FROM ledger GROUP BY prompt)
        GROUP BY rounds ORDER BY rounds
        """,
    ),
}
"""Name to what it shows and its SQL, over the table `ledger`."""
LONG = ("samples", "pairs", "matches")
"""Views of many rows: to be asked for, not printed unasked."""


def query(paths: Sequence[Path], sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of a query over the rounds' ledgers and `VIEWS`.

    The query reads these files and nothing else. Raises InputError for SQL that does not run.
    """
    import duckdb

    with duckdb.connect(":memory:") as connection:
        _prepare(connection, paths)
        try:
            found = connection.execute(sql)
            names = [column[0] for column in found.description or ()]
            return names, found.fetchall()
        except duckdb.Error as error:
            known = ", ".join(["ledger", *VIEWS])
            raise InputError(
                f"SQL: {error}; the tables are {known}; `DESCRIBE ledger` lists columns"
            ) from error


def _prepare(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> None:
    import pyarrow.dataset as ds

    # Scanned through pyarrow: DuckDB itself may open no file, not these either, to write to.
    files = ds.dataset([str(path) for path in paths], schema=_schema(), format="parquet")
    connection.register("ledger", files)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    for name, (_, sql) in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")
