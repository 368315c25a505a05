"""The 22 TPC-H queries written in pandas from the specification, with its validation parameters.

Each takes the module (`pandas` or `accel_dask.client.pandas`) and the tables, and nothing else:
the same script runs on either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Tables = Mapping[str, Any]


def q01(pd: Any, t: Tables) -> Any:
    li = t["lineitem"]
    li = li[li.l_shipdate <= pd.Timestamp("1998-09-02")]
    li = li.assign(disc_price=li.l_extendedprice * (1 - li.l_discount))
    li = li.assign(charge=li.disc_price * (1 + li.l_tax))
    out = li.groupby(["l_returnflag", "l_linestatus"], as_index=False).agg(
        sum_qty=("l_quantity", "sum"), sum_base_price=("l_extendedprice", "sum"),
        sum_disc_price=("disc_price", "sum"), sum_charge=("charge", "sum"),
        avg_qty=("l_quantity", "mean"), avg_price=("l_extendedprice", "mean"),
        avg_disc=("l_discount", "mean"), count_order=("l_orderkey", "count"),
    )  # fmt: skip
    return out.sort_values(["l_returnflag", "l_linestatus"])


def q02(pd: Any, t: Tables) -> Any:
    part = t["part"][(t["part"].p_size == 15) & t["part"].p_type.str.endswith("BRASS")]
    region = t["region"][t["region"].r_name == "EUROPE"]
    found = (
        t["partsupp"]
        .merge(part[["p_partkey", "p_mfgr"]], left_on="ps_partkey", right_on="p_partkey")
        .merge(t["supplier"], left_on="ps_suppkey", right_on="s_suppkey")
        .merge(t["nation"], left_on="s_nationkey", right_on="n_nationkey")
        .merge(region[["r_regionkey"]], left_on="n_regionkey", right_on="r_regionkey")
    )
    least = found.groupby("p_partkey", as_index=False).agg(least=("ps_supplycost", "min"))
    out = found.merge(least, on="p_partkey")
    out = out[out.ps_supplycost == out.least]
    out = out.sort_values(
        ["s_acctbal", "n_name", "s_name", "p_partkey"], ascending=[False, True, True, True]
    ).head(100)
    return out[["s_acctbal", "s_name", "n_name", "p_partkey", "p_mfgr", "s_address", "s_phone",
                "s_comment"]]  # fmt: skip


def q03(pd: Any, t: Tables) -> Any:
    day = pd.Timestamp("1995-03-15")
    customer = t["customer"][t["customer"].c_mktsegment == "BUILDING"][["c_custkey"]]
    orders = t["orders"][t["orders"].o_orderdate < day]
    li = t["lineitem"][t["lineitem"].l_shipdate > day]
    joined = customer.merge(orders, left_on="c_custkey", right_on="o_custkey").merge(
        li, left_on="o_orderkey", right_on="l_orderkey"
    )
    joined = joined.assign(revenue=joined.l_extendedprice * (1 - joined.l_discount))
    out = joined.groupby(["l_orderkey", "o_orderdate", "o_shippriority"], as_index=False).agg(
        revenue=("revenue", "sum")
    )
    out = out.sort_values(["revenue", "o_orderdate"], ascending=[False, True]).head(10)
    return out[["l_orderkey", "revenue", "o_orderdate", "o_shippriority"]]


def q04(pd: Any, t: Tables) -> Any:
    o, li = t["orders"], t["lineitem"]
    late = li[li.l_commitdate < li.l_receiptdate]
    o = o[
        (o.o_orderdate >= pd.Timestamp("1993-07-01")) & (o.o_orderdate < pd.Timestamp("1993-10-01"))
    ]
    o = o[o.o_orderkey.isin(late.l_orderkey)]
    out = o.groupby("o_orderpriority", as_index=False).agg(order_count=("o_orderkey", "count"))
    return out.sort_values("o_orderpriority")


def q05(pd: Any, t: Tables) -> Any:
    o = t["orders"]
    o = o[
        (o.o_orderdate >= pd.Timestamp("1994-01-01")) & (o.o_orderdate < pd.Timestamp("1995-01-01"))
    ]
    region = t["region"][t["region"].r_name == "ASIA"]
    joined = (
        region.merge(t["nation"], left_on="r_regionkey", right_on="n_regionkey")
        .merge(t["supplier"], left_on="n_nationkey", right_on="s_nationkey")
        .merge(t["lineitem"], left_on="s_suppkey", right_on="l_suppkey")
        .merge(o, left_on="l_orderkey", right_on="o_orderkey")
        .merge(
            t["customer"],
            left_on=["o_custkey", "s_nationkey"],
            right_on=["c_custkey", "c_nationkey"],
        )
    )
    joined["revenue"] = joined["l_extendedprice"] * (1 - joined["l_discount"])
    out = joined.groupby("n_name", as_index=False)["revenue"].sum()
    return out.sort_values("revenue", ascending=False)


def q06(pd: Any, t: Tables) -> Any:
    li = t["lineitem"]
    li = li[
        (li.l_shipdate >= pd.Timestamp("1994-01-01"))
        & (li.l_shipdate < pd.Timestamp("1995-01-01"))
        & li.l_discount.between(0.05, 0.07)
        & (li.l_quantity < 24)
    ]
    return (li.l_extendedprice * li.l_discount).sum()


def q07(pd: Any, t: Tables) -> Any:
    n1 = t["nation"][["n_nationkey", "n_name"]].rename(columns={"n_name": "supp_nation"})
    n2 = t["nation"][["n_nationkey", "n_name"]].rename(
        columns={"n_name": "cust_nation", "n_nationkey": "n2key"}
    )
    li = t["lineitem"]
    li = li[li.l_shipdate.between(pd.Timestamp("1995-01-01"), pd.Timestamp("1996-12-31"))]
    joined = (
        li.merge(t["supplier"], left_on="l_suppkey", right_on="s_suppkey")
        .merge(t["orders"], left_on="l_orderkey", right_on="o_orderkey")
        .merge(t["customer"], left_on="o_custkey", right_on="c_custkey")
        .merge(n1, left_on="s_nationkey", right_on="n_nationkey")
        .merge(n2, left_on="c_nationkey", right_on="n2key")
    )
    joined = joined[
        ((joined.supp_nation == "FRANCE") & (joined.cust_nation == "GERMANY"))
        | ((joined.supp_nation == "GERMANY") & (joined.cust_nation == "FRANCE"))
    ]
    joined = joined.assign(
        l_year=joined.l_shipdate.dt.year, volume=joined.l_extendedprice * (1 - joined.l_discount)
    )
    keys = ["supp_nation", "cust_nation", "l_year"]
    return joined.groupby(keys, as_index=False).agg(revenue=("volume", "sum")).sort_values(keys)


def q08(pd: Any, t: Tables) -> Any:
    o = t["orders"]
    o = o[o.o_orderdate.between(pd.Timestamp("1995-01-01"), pd.Timestamp("1996-12-31"))]
    part = t["part"][t["part"].p_type == "ECONOMY ANODIZED STEEL"][["p_partkey"]]
    n1 = t["nation"][["n_nationkey", "n_regionkey"]]
    n2 = t["nation"][["n_nationkey", "n_name"]].rename(columns={"n_nationkey": "n2key"})
    region = t["region"][t["region"].r_name == "AMERICA"][["r_regionkey"]]
    joined = (
        part.merge(t["lineitem"], left_on="p_partkey", right_on="l_partkey")
        .merge(t["supplier"], left_on="l_suppkey", right_on="s_suppkey")
        .merge(o, left_on="l_orderkey", right_on="o_orderkey")
        .merge(t["customer"], left_on="o_custkey", right_on="c_custkey")
        .merge(n1, left_on="c_nationkey", right_on="n_nationkey")
        .merge(region, left_on="n_regionkey", right_on="r_regionkey")
        .merge(n2, left_on="s_nationkey", right_on="n2key")
    )
    volume = joined.l_extendedprice * (1 - joined.l_discount)
    joined = joined.assign(
        o_year=joined.o_orderdate.dt.year, volume=volume,
        brazil=volume.where(joined.n_name == "BRAZIL", 0),
    )  # fmt: skip
    out = joined.groupby("o_year", as_index=False).agg(b=("brazil", "sum"), v=("volume", "sum"))
    return out.assign(mkt_share=out.b / out.v)[["o_year", "mkt_share"]].sort_values("o_year")


def q09(pd: Any, t: Tables) -> Any:
    part = t["part"][t["part"].p_name.str.contains("green", regex=False)][["p_partkey"]]
    joined = (
        part.merge(t["lineitem"], left_on="p_partkey", right_on="l_partkey")
        .merge(t["supplier"], left_on="l_suppkey", right_on="s_suppkey")
        .merge(
            t["partsupp"], left_on=["l_suppkey", "l_partkey"], right_on=["ps_suppkey", "ps_partkey"]
        )
        .merge(t["orders"], left_on="l_orderkey", right_on="o_orderkey")
        .merge(t["nation"], left_on="s_nationkey", right_on="n_nationkey")
    )
    joined = joined.assign(
        o_year=joined.o_orderdate.dt.year,
        amount=joined.l_extendedprice * (1 - joined.l_discount)
        - joined.ps_supplycost * joined.l_quantity,
    )
    out = joined.groupby(["n_name", "o_year"], as_index=False).agg(sum_profit=("amount", "sum"))
    return out.sort_values(["n_name", "o_year"], ascending=[True, False])


def q10(pd: Any, t: Tables) -> Any:
    o = t["orders"]
    o = o[
        (o.o_orderdate >= pd.Timestamp("1993-10-01")) & (o.o_orderdate < pd.Timestamp("1994-01-01"))
    ]
    li = t["lineitem"][t["lineitem"].l_returnflag == "R"]
    joined = (
        t["customer"].merge(o, left_on="c_custkey", right_on="o_custkey")
        .merge(li, left_on="o_orderkey", right_on="l_orderkey")
        .merge(t["nation"], left_on="c_nationkey", right_on="n_nationkey")
    )  # fmt: skip
    joined = joined.assign(revenue=joined.l_extendedprice * (1 - joined.l_discount))
    keys = ["c_custkey", "c_name", "c_acctbal", "c_phone", "n_name", "c_address", "c_comment"]
    out = joined.groupby(keys, as_index=False).agg(revenue=("revenue", "sum"))
    out = out.sort_values(["revenue", "c_custkey"], ascending=[False, True]).head(20)
    return out[["c_custkey", "c_name", "revenue", "c_acctbal", "n_name", "c_address", "c_phone",
                "c_comment"]]  # fmt: skip


def q11(pd: Any, t: Tables) -> Any:
    nation = t["nation"][t["nation"].n_name == "GERMANY"][["n_nationkey"]]
    joined = (
        t["partsupp"]
        .merge(t["supplier"], left_on="ps_suppkey", right_on="s_suppkey")
        .merge(nation, left_on="s_nationkey", right_on="n_nationkey")
    )
    joined = joined.assign(value=joined.ps_supplycost * joined.ps_availqty)
    total = joined["value"].sum()
    out = joined.groupby("ps_partkey", as_index=False).agg(value=("value", "sum"))
    return out[out["value"] > total * 0.0001].sort_values(
        ["value", "ps_partkey"], ascending=[False, True]
    )


def q12(pd: Any, t: Tables) -> Any:
    li = t["lineitem"]
    li = li[
        li.l_shipmode.isin(["MAIL", "SHIP"])
        & (li.l_commitdate < li.l_receiptdate)
        & (li.l_shipdate < li.l_commitdate)
        & (li.l_receiptdate >= pd.Timestamp("1994-01-01"))
        & (li.l_receiptdate < pd.Timestamp("1995-01-01"))
    ]
    joined = t["orders"].merge(li, left_on="o_orderkey", right_on="l_orderkey")
    high = joined.o_orderpriority.isin(["1-URGENT", "2-HIGH"])
    joined = joined.assign(high=high.astype(int), low=(~high).astype(int))
    out = joined.groupby("l_shipmode", as_index=False).agg(
        high_line_count=("high", "sum"), low_line_count=("low", "sum")
    )
    return out.sort_values("l_shipmode")


def q13(pd: Any, t: Tables) -> Any:
    o = t["orders"][~t["orders"].o_comment.str.contains("special.*requests")]
    joined = t["customer"][["c_custkey"]].merge(
        o[["o_custkey", "o_orderkey"]], how="left", left_on="c_custkey", right_on="o_custkey"
    )
    counts = joined.groupby("c_custkey", as_index=False).agg(c_count=("o_orderkey", "count"))
    out = counts.groupby("c_count", as_index=False).agg(custdist=("c_custkey", "count"))
    return out.sort_values(["custdist", "c_count"], ascending=[False, False])


def q14(pd: Any, t: Tables) -> Any:
    li = t["lineitem"]
    li = li[
        (li.l_shipdate >= pd.Timestamp("1995-09-01")) & (li.l_shipdate < pd.Timestamp("1995-10-01"))
    ]
    joined = li.merge(t["part"], left_on="l_partkey", right_on="p_partkey")
    revenue = joined.l_extendedprice * (1 - joined.l_discount)
    promo = revenue.where(joined.p_type.str.startswith("PROMO"), 0)
    return 100.0 * promo.sum() / revenue.sum()


def q15(pd: Any, t: Tables) -> Any:
    li = t["lineitem"]
    li = li[
        (li.l_shipdate >= pd.Timestamp("1996-01-01")) & (li.l_shipdate < pd.Timestamp("1996-04-01"))
    ]
    li = li.assign(revenue=li.l_extendedprice * (1 - li.l_discount))
    sums = li.groupby("l_suppkey", as_index=False).agg(total_revenue=("revenue", "sum"))
    best = sums[sums.total_revenue > sums.total_revenue.max() - 0.00001]
    out = t["supplier"].merge(best, left_on="s_suppkey", right_on="l_suppkey")
    return out[["s_suppkey", "s_name", "s_address", "s_phone", "total_revenue"]].sort_values(
        "s_suppkey"
    )


def q16(pd: Any, t: Tables) -> Any:
    p = t["part"]
    p = p[
        (p.p_brand != "Brand#45")
        & ~p.p_type.str.startswith("MEDIUM POLISHED")
        & p.p_size.isin([49, 14, 23, 45, 19, 3, 36, 9])
    ]
    bad = t["supplier"][t["supplier"].s_comment.str.contains("Customer.*Complaints")]
    ps = t["partsupp"][~t["partsupp"].ps_suppkey.isin(bad.s_suppkey)]
    joined = ps.merge(p, left_on="ps_partkey", right_on="p_partkey")
    out = joined.groupby(["p_brand", "p_type", "p_size"], as_index=False).agg(
        supplier_cnt=("ps_suppkey", "nunique")
    )
    return out.sort_values(
        ["supplier_cnt", "p_brand", "p_type", "p_size"], ascending=[False, True, True, True]
    )


def q17(pd: Any, t: Tables) -> Any:
    p = t["part"][(t["part"].p_brand == "Brand#23") & (t["part"].p_container == "MED BOX")]
    joined = t["lineitem"].merge(p[["p_partkey"]], left_on="l_partkey", right_on="p_partkey")
    means = joined.groupby("p_partkey", as_index=False).agg(mean=("l_quantity", "mean"))
    joined = joined.merge(means, on="p_partkey")
    return joined[joined.l_quantity < 0.2 * joined["mean"]].l_extendedprice.sum() / 7.0


def q18(pd: Any, t: Tables) -> Any:
    sums = t["lineitem"].groupby("l_orderkey", as_index=False).agg(quantity=("l_quantity", "sum"))
    large = sums[sums.quantity > 300]
    joined = (
        large.merge(t["orders"], left_on="l_orderkey", right_on="o_orderkey")
        .merge(t["customer"], left_on="o_custkey", right_on="c_custkey")
    )  # fmt: skip
    out = joined[["c_name", "c_custkey", "o_orderkey", "o_orderdate", "o_totalprice", "quantity"]]
    return out.sort_values(["o_totalprice", "o_orderdate"], ascending=[False, True]).head(100)


def q19(pd: Any, t: Tables) -> Any:
    li = t["lineitem"]
    li = li[li.l_shipmode.isin(["AIR", "AIR REG"]) & (li.l_shipinstruct == "DELIVER IN PERSON")]
    j = li.merge(t["part"], left_on="l_partkey", right_on="p_partkey")
    sm = j.p_container.isin(["SM CASE", "SM BOX", "SM PACK", "SM PKG"])
    med = j.p_container.isin(["MED BAG", "MED BOX", "MED PKG", "MED PACK"])
    lg = j.p_container.isin(["LG CASE", "LG BOX", "LG PACK", "LG PKG"])
    one = (j.p_brand == "Brand#12") & sm & j.l_quantity.between(1, 11) & j.p_size.between(1, 5)
    two = (j.p_brand == "Brand#23") & med & j.l_quantity.between(10, 20) & j.p_size.between(1, 10)
    six = (j.p_brand == "Brand#34") & lg & j.l_quantity.between(20, 30) & j.p_size.between(1, 15)
    j = j[one | two | six]
    return (j.l_extendedprice * (1 - j.l_discount)).sum()


def q20(pd: Any, t: Tables) -> Any:
    li = t["lineitem"]
    li = li[
        (li.l_shipdate >= pd.Timestamp("1994-01-01")) & (li.l_shipdate < pd.Timestamp("1995-01-01"))
    ]
    p = t["part"][t["part"].p_name.str.startswith("forest")]
    ps = t["partsupp"]
    ps = ps[ps.ps_partkey.isin(p.p_partkey)]
    half = li.groupby(["l_partkey", "l_suppkey"], as_index=False).agg(q=("l_quantity", "sum"))
    ps = ps.merge(half, left_on=["ps_partkey", "ps_suppkey"], right_on=["l_partkey", "l_suppkey"])
    ps = ps[ps.ps_availqty > 0.5 * ps.q]
    nation = t["nation"][t["nation"].n_name == "CANADA"][["n_nationkey"]]
    out = t["supplier"][t["supplier"].s_suppkey.isin(ps.ps_suppkey)].merge(
        nation, left_on="s_nationkey", right_on="n_nationkey"
    )
    return out[["s_name", "s_address"]].sort_values("s_name")


def q21(pd: Any, t: Tables) -> Any:
    li = t["lineitem"]
    late = li[li.l_receiptdate > li.l_commitdate]
    every = li.groupby("l_orderkey", as_index=False).agg(every=("l_suppkey", "nunique"))
    lates = late.groupby("l_orderkey", as_index=False).agg(lates=("l_suppkey", "nunique"))
    orders = t["orders"][t["orders"].o_orderstatus == "F"][["o_orderkey"]]
    nation = t["nation"][t["nation"].n_name == "SAUDI ARABIA"][["n_nationkey"]]
    joined = (
        late.merge(orders, left_on="l_orderkey", right_on="o_orderkey")
        .merge(t["supplier"], left_on="l_suppkey", right_on="s_suppkey")
        .merge(nation, left_on="s_nationkey", right_on="n_nationkey")
        .merge(every, on="l_orderkey")
        .merge(lates, on="l_orderkey")
    )
    joined = joined[(joined.every > 1) & (joined.lates == 1)]
    out = joined.groupby("s_name", as_index=False).agg(numwait=("l_orderkey", "count"))
    return out.sort_values(["numwait", "s_name"], ascending=[False, True]).head(100)


def q22(pd: Any, t: Tables) -> Any:
    c = t["customer"]
    c = c.assign(cntrycode=c.c_phone.str[:2])
    c = c[c.cntrycode.isin(["13", "31", "23", "29", "30", "18", "17"])]
    mean = c[c.c_acctbal > 0.0].c_acctbal.mean()
    c = c[(c.c_acctbal > mean) & ~c.c_custkey.isin(t["orders"].o_custkey)]
    out = c.groupby("cntrycode", as_index=False).agg(
        numcust=("c_acctbal", "count"), totacctbal=("c_acctbal", "sum")
    )
    return out.sort_values("cntrycode")


SCRIPTS: dict[str, Callable[[Any, Tables], Any]] = {
    name: function
    for name, function in list(globals().items())
    if len(name) == 3 and name.startswith("q") and name[1:].isdigit()
}
