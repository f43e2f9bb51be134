# Every group of order 1 to 127 in GAP's numbering, as li2_lightning/resources/small_groups.json.gz:
#
#     apt-get install gap-core gap-smallgrp        # only this script needs them, the library does not
#     gap -q tools/export_small_groups.g < /dev/null | gzip -9n > li2_lightning/resources/small_groups.json.gz
#     python -m pytest tests/groups/test_small_groups.py            # compares every group with GAP's data
#
# This takes some minutes. Equal versions of GAP and SmallGrp write equal bytes.
#
# Element k of a group is number k+1 of its sorted elements, so that element 0 is the identity. The file has the row
# k -> g*k of the Cayley table, counted from 0, for each generator g. It has the number of irreps of each kind and
# dimension: R, C and H for Frobenius-Schur indicator 1, 0 and -1; a conjugate pair counts as two.

if LoadPackage("smallgrp") <> true then QuitGap(1); fi;
SizeScreen([4096, 24]);
stdout := OutputTextUser();
SetPrintFormattingStatus(stdout, false);

Json := function(list)
  return Concatenation("[", JoinStringsWithSeparator(List(list, String), ","), "]");
end;

Irreps := function(G)
  local kinds;
  kinds := Collected(TransposedMat([List(Irr(G), DegreeOfCharacter), Indicator(CharacterTable(G), 2)]));
  return Concatenation("{", JoinStringsWithSeparator(List(kinds, entry ->
    Concatenation("\"", ["H", "C", "R"][entry[1][2] + 2], String(entry[1][1]), "\":", String(entry[2]))), ","), "}");
end;

Generators := function(G)
  # Few generators keep the file small; GAP finds a minimal set only for solvable groups.
  if IsSolvableGroup(G) then return MinimalGeneratingSet(G); fi;
  return SmallGeneratingSet(G);
end;

Record := function(order, index)
  local G, elements, rows, degrees;
  G := SmallGroup(order, index);
  elements := AsSSortedList(G);
  rows := List(Generators(G), g -> Json(List(elements, x -> PositionSorted(elements, g * x) - 1)));
  degrees := List(CharacterDegrees(SmallGroup(order, index)), Json);
  return Concatenation("{\"order\":", String(order), ",\"index\":", String(index),
    ",\"name\":\"", StructureDescription(G), "\",\"abelian\":", String(IsAbelian(G)),
    ",\"classes\":", String(NrConjugacyClasses(G)), ",\"degrees\":", Json(degrees),
    ",\"irreps\":", Irreps(G), ",\"generators\":", Json(rows), "}");
end;

PrintTo(stdout, "{\"source\":\"GAP ", GAPInfo.Version, ", SmallGrp ", PackageInfo("smallgrp")[1].Version,
  "\",\"groups\":[");
for order in [1 .. 127] do
  for index in [1 .. NumberSmallGroups(order)] do
    if order > 1 then PrintTo(stdout, ","); fi;
    PrintTo(stdout, "\n", Record(order, index));
  od;
od;
PrintTo(stdout, "\n]}\n");
QuitGap(0);
