"""Small operations on one table of missing values, NaN and ties, each written once for pandas,
the client and dask.dataframe. The parity scoreboard of the docs is made of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from client_world import same

PROBES = r"""
df[df.i > 1]
df[df.k != 'a']
df[~(df.k == 'a')]
df[(df.i > 0) & (df.f < 1)]
df[(df.i > 3) | df.k.isna()]
df[df.k.isin(['a', 'b'])]
df[~df.k.isin(['a', 'b'])]
df[df.k.isin(['a', None])]
df[df.f.isna()]
df[df.f.notna()]
df[df.i.between(-1, 3)]
df[df.t >= '2024-01-10']
df.query("i > 1 and f < 2")
df.query("k in ['a', 'b'] or i < 0")
df[['k', 'i']]
df.drop(columns=['f'])
df.rename(columns={'i': 'number'})
df.assign(x=df.i + df.f)[['x']]
df.assign(x=df.i - df.g)[['x']]
df.assign(x=df.i * 2)[['x']]
df.assign(x=df.i / df.j)[['x']]
df.assign(x=df.i // 3)[['x']]
df.assign(x=df.i % 3)[['x']]
df.assign(x=df.i // df.j)[['x']]
df.assign(x=df.i % df.j)[['x']]
df.assign(x=df.f // 0.3)[['x']]
df.assign(x=df.f % 0.3)[['x']]
df.assign(x=df.i ** 2)[['x']]
df.assign(x=-df.i)[['x']]
df.assign(x=df.f.abs())[['x']]
df.assign(x=df.f.round(1))[['x']]
df.assign(x=df.f.clip(-0.5, 0.5))[['x']]
df.assign(x=df.f.fillna(0))[['x']]
df.assign(x=df.k.fillna('none'))[['x']]
df.assign(x=df.f.where(df.i > 0))[['x']]
df.assign(x=df.f.mask(df.i > 0, 9.0))[['x']]
df.assign(x=df.i.replace({1: 100}))[['x']]
df.assign(x=df.k.map({'a': 1, 'b': 2}))[['x']]
df.assign(x=df.i > 2)[['x']]
df.assign(x=df.k == 'a')[['x']]
df.assign(x=df.i.astype(float))[['x']]
df.assign(x=df.i.astype(str))[['x']]
df.assign(x=df.b.astype(int))[['x']]
df.assign(x=df.k.str.upper())[['x']]
df.assign(x=df.k.str.len())[['x']]
df.assign(x=df.k.str.strip())[['x']]
df.assign(x=df.k.str.contains('a'))[['x']]
df.assign(x=~df.k.str.contains('a'))[['x']]
df.assign(x=df.k.str.startswith('a'))[['x']]
df.assign(x=df.k.str.slice(0, 1))[['x']]
df.assign(x=df.k.str.replace('a', 'z'))[['x']]
df.assign(x=df.k.str.replace('[ab]', 'z', regex=True))[['x']]
df.assign(x=df.t.dt.year)[['x']]
df.assign(x=df.t.dt.month)[['x']]
df.assign(x=df.t.dt.day_of_week)[['x']]
df.assign(x=df.t.dt.hour)[['x']]
df.assign(x=df.t.dt.quarter)[['x']]
df.assign(x=df.t.dt.floor('D'))[['x']]
df.assign(x=df.t.dt.day_name())[['x']]
df.assign(x=df.t.dt.strftime('%Y-%m'))[['x']]
df.assign(x=df.t + pd.Timedelta('1D'))[['x']]
df.assign(x=(df.t - df.t.min()).dt.total_seconds())[['x']]
df.f.sum()
df.f.mean()
df.f.min()
df.f.max()
df.f.std()
df.f.var()
df.f.median()
df.f.quantile(0.25)
df.f.count()
df.k.nunique()
df.f.skew()
df.b.any()
df.b.all()
df.i.prod()
df[df.i > 100].f.sum()
df[df.i > 100].f.mean()
len(df[df.i > 2])
df.groupby('k').i.sum()
df.groupby('k').f.mean()
df.groupby('k').f.std()
df.groupby('k').f.median()
df.groupby('k').size()
df.groupby('k').f.count()
df.groupby('k').i.nunique()
df.groupby('k', dropna=False).i.sum()
df.groupby(['k', 'b']).i.max()
df.groupby('k').agg(x=('i', 'sum'), y=('f', 'mean'))
df.groupby('k').agg({'i': 'sum', 'f': 'max'})
df.groupby('k')[['i', 'f']].agg(['sum', 'mean'])
df.groupby('k').f.transform('mean')
df.groupby('k').i.cumsum()
df.groupby('k').i.shift(1)
df.groupby('k').i.rank(method='dense')
df.groupby('k').head(1)
df.groupby('k', as_index=False).i.sum()
df.groupby(df.t.dt.month).i.sum()
df.groupby(pd.Grouper(key='t', freq='D')).i.sum()
df.resample('W', on='t').i.sum()
df.resample('ME', on='t').f.mean()
df.resample('6h', on='t').i.count()
df.i.cumsum()
df.f.cummax()
df.i.shift(1)
df.i.diff()
df.f.pct_change()
df.f.rank()
df.i.rank(method='min', ascending=False)
df.i.rank(pct=True)
df.i.rolling(3).sum()
df.f.rolling(3, min_periods=1).mean()
df.i.expanding().mean()
df.sort_values(['t', 'row']).rolling('7D', on='t')['i'].sum()
df.sort_values(['t', 'row']).rolling('36h', on='t', min_periods=2)['f'].mean()
df.sort_values(['t', 'row']).set_index('t')['i'].rolling('10D').max()
df.sort_values(['t', 'row']).groupby('b').rolling('7D', on='t')['i'].sum()
df.groupby('b')['i'].rolling(3).mean().reset_index(level=0, drop=True).sort_values()
df.assign(m=df.groupby('k')['i'].rolling(2).sum().reset_index(level=0, drop=True))
df.assign(m=df.groupby('k')['f'].expanding().max().reset_index(level=0, drop=True))
df.groupby('k')[['i', 'j']].cumsum()
df.groupby('k')[['i', 'j']].shift(1)
df.groupby('k')['i'].rank(method='dense')
df.groupby('k', dropna=False)['i'].cumsum()
df.groupby('k')['f'].pct_change()
df.groupby(['k', 'b'])['i'].sum().unstack()
df.groupby('k')['i'].sum().idxmax()
df.groupby('k')['f'].mean().idxmin()
df.k.value_counts()
df.i.value_counts(normalize=True)
df.drop_duplicates(subset=['k', 'b'])
df[['k', 'b']].drop_duplicates()
df.sort_values('row', ascending=False)
df.sort_values(['i', 'row']).head(5)
df.sort_values('row').tail(3)
df.nlargest(3, 'row')
df.nsmallest(3, 'row')
df.dropna()
df.dropna(subset=['k'])
df.merge(df[['k', 'g']].drop_duplicates(), on='k')
df.merge(df.groupby('k').agg(m=('i', 'max')).reset_index(), on='k', how='left')
df.merge(df.groupby('k').agg(m=('i', 'max')).reset_index(), on='k', how='outer')
df.merge(df[df.i > 2][['row', 'f']], on='row', suffixes=('', '_r'))
pd.concat([df, df[df.i > 2]], ignore_index=True)
df.melt(id_vars=['row'], value_vars=['i', 'j'])
df.pivot_table(values='i', index='k', columns='b', aggfunc='sum')
df.pivot_table(values='f', index='k', columns='b')
pd.crosstab(df.k, df.b)
pd.cut(df.i, [-8, -2, 0, 3, 8])
pd.cut(df.i, 4, labels=False)
pd.qcut(df.j, 2, labels=False)
df[['i', 'f']].describe()
df[['i', 'f']].corr()
df[['i', 'f']].sum()
df[['i', 'f']].mean()
df.f.describe()
df.i.mode()
df.k.unique()
df.loc[df.i > 1, ['k', 'i']]
df.select_dtypes('number')
df[df.i > df.i.mean()]
df[df.k.isin(df[df.i > 3].k)]
df.set_index('row').sort_index()
df[lambda d: d.i > 1]
df.loc[lambda d: d.i > 1, 'i']
df.i[lambda s: s > 1]
df.pipe(lambda d: d[d.i > 1])
df.query('(i > 1) & (f < 2) | b == False')
df.query('i > 2 & b')
df.drop(columns=['f', 'none'], errors='ignore')
df.add_prefix('p_')
df.filter(regex='^[ij]$')
-df.b
df[-df.b]
df[['i', 'f']] * 2
2 - df[['i', 'f']]
df[['i', 'f']] / df[['i', 'f']]
df[['i', 'j']] == df[['i', 'j']]
df[['i', 'j']][df[['i', 'j']] > 1]
(df[['i', 'j']] > 1).sum()
df[['i', 'f']].clip(-1, 1)
df[['i', 'f']].where(df.i > 0, 0)
df[['f', 'g']].mask(df[['f', 'g']].isna(), -1)
df[['i', 'j']].isin({'i': [1, 2]})
df[['i', 'j']].replace({1: 5})
df[['i', 'j']].shift(1)
df[['i', 'f']].cumsum()
df[['i', 'f']].rank()
df[['i', 'f']].prod()
df[['i', 'f']].skew()
df.assign(x=df.f.fillna(df.i))[['x']]
df.f.fillna(df.i)
df.f.shift(1, fill_value=0.5)
df.i.nlargest(100)
df.g.nsmallest(55)
round(df.f, 1)
df.k.str.contains('b$')
df.k.str.contains(r'^\w+$')
df.k.str.contains(r'\s')
df.k.str.replace(r'(\w)', r'<\1>', regex=True)
df.groupby('k').cumcount()
df.groupby('k').tail(1)
df.groupby('k').i.transform('first')
df.groupby('k').g.transform('last')
df.groupby('k').i.transform('cumsum')
df.groupby('k')[['i', 'f']].quantile(0.3)
df.groupby('k')[['i', 'f']].prod()
df.groupby('k')[['b']].any()
df.groupby('k').f.kurt()
df.groupby('k').t.median()
len(df.groupby('k'))
df.t.median()
df.t.quantile([0.1, 0.9])
df.t.describe()
df[['i', 't']].describe()
df.describe()
df.set_index('t').i.resample('D').sum()
df.set_index('t').groupby(pd.Grouper(freq='D')).i.sum()
df.groupby('k')[['i']].sum().merge(df.groupby('k').f.sum(), left_index=True, right_index=True)
pd.concat([df.i, df.j])
pd.cut(df.i, [-8, 0, 8], labels=['low', 'high']) == 'low'
pd.cut(df.i, [-8, 0, 8], labels=['low', 'high']).isin(['low', 'none'])
pd.cut(df.i, [-8, 0, 8], labels=['low', 'high']).max()
pd.cut(df.i, [-8, 0, 8], labels=['low', 'high']).astype(str)
pd.cut(df.i, [-8, 0, 5], labels=['low', 'high']).fillna('low')
pd.isnull(df.k)
df.f.mean().round(2)
df.i.sum().item()
df.t.dt.isocalendar().week
df.groupby('b').k.value_counts().sort_index()
df.groupby('k').agg({'g': ['sum', 'count']})['g']
df.pivot_table(values='i', index='k', columns='b', aggfunc='sum').reset_index()
df.groupby(['k', 'b'])['i'].sum().unstack().reset_index()
df.resample('D', on='t').i.sum().reset_index()
df.resample('D', on='t').i.sum().reset_index(drop=True)
df.resample('D', on='t')[['i', 'f']].sum().reset_index()
df.resample('D', on='t').b.any()
df.set_index('k').query("k == 'a'")
df.groupby('k').agg({'g': ['sum', 'count'], 'f': ['mean']}).reset_index()
df.groupby('k', as_index=False).agg({'g': ['sum', 'count'], 'f': ['mean']})
df.groupby(['k', 'b']).agg({'g': ['sum', 'count']}).reset_index()
""".strip().splitlines()


def table() -> pa.Table:
    """The rows that all are tried on."""
    random = np.random.default_rng(7)
    count = 60
    keys = np.array(["a", "b", " c", "ab", None], dtype=object)
    floats = np.where(random.random(count) < 0.2, np.nan, random.normal(size=count).round(3))
    hours = random.integers(0, 24 * 45, count)
    return pa.table(
        {
            "k": pa.array(list(random.choice(keys, count)), pa.string()),
            "i": pa.array(random.integers(-7, 8, count), pa.int64()),
            "j": pa.array(np.resize([1, 2, 3, -2, 5], count), pa.int64()),
            "g": pa.array([None if v == 0 else int(v) for v in random.integers(0, 4, count)]),
            "f": pa.array(floats),
            "b": pa.array(random.random(count) < 0.5),
            "t": pa.array(
                np.datetime64("2024-01-01", "us") + hours.astype("timedelta64[h]"),
                pa.timestamp("us"),
            ),
            "row": pa.array(range(count), pa.int64()),
        }
    )


def expected(frame: pd.DataFrame, probe: str) -> Any:
    return eval(probe, {"df": frame, "pd": pd, "len": len})


def verdict(probe: str, theirs: Any, run: Callable[[str], Any], *refusals: type[Exception]) -> str:
    """`ok`, `wrong`, `refused` with one of `refusals`, or `error`."""
    ordered = any(word in probe for word in ("sort_", "nlargest", "nsmallest"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = run(probe)
            ours = ours.compute() if hasattr(ours, "compute") else ours
    except refusals:
        return "refused"
    except Exception:  # noqa: BLE001 - whatever an engine raises, it is no answer
        return "error"
    try:
        same(_shaped(ours), _shaped(theirs), ordered=ordered)
    except (AssertionError, TypeError, ValueError, AttributeError):
        return "wrong"
    return "ok"


def _shaped(found: Any) -> Any:
    if isinstance(found, pd.Index) or type(found).__name__.endswith("Array"):
        found = pd.Series(found)
    if isinstance(found, np.ndarray):
        found = pd.Series(found)
    is_plain = isinstance(found, pd.DataFrame | pd.Series) and found.index.names == [None]
    if is_plain and pd.api.types.is_integer_dtype(found.index.dtype):
        return found.reset_index(drop=True)
    return found
